"""Not a stage: writes the folder of a new device, targets/NAME, from one of the examples.

python -m stages.target NAME HOST [--like EXAMPLE]
"""

import argparse

from ruamel.yaml import YAML

from pipeline.errors import ParamsError
from pipeline.portable.files import atomic_folder
from pipeline.remote import Address
from pipeline.store.paths import TARGET_EXAMPLES, TARGET_STAGES, TARGETS
from pipeline.targets import check_name, remeasure
from stages.common import run_program

THIS_MACHINE = "local"
HEAD = "# Device {}: docs/devices.md says how to set it up and how to read its results."
PLACEHOLDER = "DEVICE"
DEFAULT = "raspberry_pi"


def examples() -> list[str]:
    return sorted(path.stem for path in TARGET_EXAMPLES.glob("*.yaml") if path != TARGET_STAGES)


def target(name: str, host: str, like: str) -> None:
    folder, yaml = TARGETS / check_name(name), YAML()
    address = {"transport": "local", "host": None} if host == THIS_MACHINE else {"host": Address(host=host).host}
    if folder.exists():
        raise ParamsError(f"{folder} exists already; choose another name, or remove the folder first")
    if like not in examples():
        raise ParamsError(f"{TARGET_EXAMPLES} has no example {like!r}; choose from {', '.join(examples())}")
    # the text above the first empty line is about the example only
    _, _, settings = (TARGET_EXAMPLES / f"{like}.yaml").read_text(encoding="utf-8").partition("\n\n")
    device = yaml.load(settings)
    yaml.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    device["address"].update(address)
    stages = TARGET_STAGES.read_text(encoding="utf-8").replace(PLACEHOLDER, name)
    with atomic_folder(folder) as temporary:
        with (temporary / "device.yaml").open("w", encoding="utf-8") as file:
            file.write(f"{HEAD.format(name)}\n\n")
            yaml.dump(device, file)
        (temporary / "dvc.yaml").write_text(stages, encoding="utf-8")
    print(f"{folder}/device.yaml and {folder}/dvc.yaml are written; check the first, then run `{remeasure(name)}`")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.target", description=__doc__)
    parser.add_argument("name", help="name of the device and of its folder in targets/")
    parser.add_argument("host", help=f"user@host or an alias of the ssh configuration; {THIS_MACHINE}: this machine")
    parser.add_argument(
        "--like", default=DEFAULT, help=f"example of targets/examples/ to begin with; default {DEFAULT}"
    )
    arguments = parser.parse_args()
    run_program(lambda: target(arguments.name, arguments.host, arguments.like))


if __name__ == "__main__":
    main()
