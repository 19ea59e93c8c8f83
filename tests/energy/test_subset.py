"""The subset of a run; the choice itself is tested beside its mixing."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.energy.subset import make_subset
from pipeline.errors import DataError
from pipeline.lineage import Run


def test_the_subset_of_a_run_is_written_with_what_it_was_made_from(tiny_run, params):
    wanted = params.heda.model_copy(update={"fraction": 0.3, "subset": "high_energy"})
    chosen = make_subset(tiny_run, wanted, seed=0)
    made = Run(tiny_run.places)
    columns = made.subset.columns
    np.testing.assert_array_equal(columns["index"], chosen)
    assert len(chosen) == int(0.3 * made.data.counts.train)
    for name in ("label", "energy"):
        np.testing.assert_array_equal(columns[name], made.energy.columns[name][chosen])
    others = np.delete(made.energy.columns["energy"], chosen)
    assert columns["energy"].min() >= others.max()
    assert (made.subset.lineage.fraction, made.subset.lineage.subset) == (0.3, "high_energy")


def test_a_fraction_that_selects_no_image_is_refused_and_the_earlier_subset_stays(tiny_run, params):
    before = tiny_run.places.subset.read_bytes()
    wanted = params.heda.model_copy(update={"fraction": 1e-6})
    with pytest.raises(DataError, match=r"^params\.yaml: heda\.fraction: .* selects none; raise the fraction or add"):
        make_subset(tiny_run, wanted, seed=0)
    assert tiny_run.places.subset.read_bytes() == before
