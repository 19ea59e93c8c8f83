"""The client that measures on another machine: it sends a bundle, follows the run and fetches the result."""

from pipeline.remote.address import Address
from pipeline.remote.build import BundleContent, write_bundle
from pipeline.remote.errors import LinkError, RemoteError
from pipeline.remote.run import run_bundle

__all__ = ["Address", "BundleContent", "LinkError", "RemoteError", "run_bundle", "write_bundle"]
