"""Not a stage: puts a recipe, a complete parameter file of recipes/, in the place of params.yaml and keeps the old one.

python -m stages.recipe NAME
"""

import argparse
from itertools import count
from pathlib import Path

from pipeline.config import load_params
from pipeline.errors import ParamsError
from pipeline.portable.files import atomic_file
from pipeline.store.paths import PARAMS, RECIPES
from stages.common import run_program


def recipe(name: str) -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if name not in names:
        raise ParamsError(f"{RECIPES} has no recipe {name!r}; choose from {', '.join(names)}")
    source = RECIPES / f"{name}.yaml"
    load_params(source)
    if PARAMS.exists() and not PARAMS.is_file():
        raise ParamsError(f"{PARAMS} is not a file; move it away")
    if PARAMS.exists() and PARAMS.read_bytes() == source.read_bytes():
        print(f"{PARAMS} is the recipe {name} already")
        return
    kept = next(path for number in count(1) if not (path := Path(f"{PARAMS}.{number}")).exists())
    for copy, of in ((kept, PARAMS), (PARAMS, source)):
        if of.exists():
            with atomic_file(copy) as temporary:
                temporary.write_bytes(of.read_bytes())
    old = f"; the old file is {kept}" if kept.exists() else ""
    print(f"{PARAMS} is the recipe {name}{old}; read its first lines, then run `make repro`")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m stages.recipe", description=__doc__)
    parser.add_argument("name", help="of a file in recipes/")
    arguments = parser.parse_args()
    run_program(lambda: recipe(arguments.name))
