"""Measuring on another machine: what is sent there, and how it comes back."""

from __future__ import annotations

from pipeline.remote.address import Address
from pipeline.remote.build import BundleContent, write_bundle
from pipeline.remote.errors import LinkError, RemoteError
from pipeline.remote.run import run_bundle

__all__ = ["Address", "BundleContent", "LinkError", "RemoteError", "run_bundle", "write_bundle"]
