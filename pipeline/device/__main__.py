"""Entry point of a bundle. Its syntax is valid in every Python, so an old Python can print the error sentence."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.stderr.write(
        "error: Python %d.%d is too old for this bundle, which needs 3.10 or newer; "  # noqa: UP031
        "start it with a newer one, for example `python3.11 bundle.pyz`.\n" % sys.version_info[:2]
    )
    sys.exit(2)

from pipeline.device.service.main import main

sys.exit(main())
