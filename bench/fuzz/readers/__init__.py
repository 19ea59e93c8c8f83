"""The readers of ours that meet other people's files, each with valid files and what is done to them."""

from __future__ import annotations

from bench.fuzz.readers import bundle, energy, graph, image, manifest, network, report, result, settings, store, weights

TARGETS = {
    target.name: target
    for target in (
        settings.PARAMS,
        settings.DEVICE,
        store.TARGET,
        energy.TARGET,
        network.TARGET,
        manifest.TARGET,
        report.TARGET,
        result.TARGET,
        bundle.TARGET,
        graph.STRUCTURE,
        graph.SESSION,
        image.TARGET,
        weights.TARGET,
    )
}
