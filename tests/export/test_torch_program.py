"""What is in the torch program."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.export.torch_program import TorchProgram

from .conftest import METADATA, Exported


def test_program_runs_any_batch_size_bit_for_bit_as_the_network(exported: Exported) -> None:
    module = torch.export.load(exported.folder / "student_fp32.pt2").module()
    for batch in (1, 3, len(exported.images)):
        with torch.inference_mode():
            logits, _ = module(torch.from_numpy(exported.images[:batch]))
        torch.testing.assert_close(logits, torch.from_numpy(exported.logits[:batch]), rtol=0, atol=1e-6)


def test_metadata_are_files_of_the_archive(exported: Exported) -> None:
    extra = dict.fromkeys([*METADATA, "role", "precision"], "")
    torch.export.load(exported.folder / "student_fp32.pt2", extra_files=extra)
    assert extra == METADATA | {"role": "student", "precision": "fp32"}


def test_other_precisions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="written in fp32, not in fp16"):
        TorchProgram().write(None, "fp16", tmp_path / "a.pt2", {})
