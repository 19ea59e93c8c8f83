"""Where the stages' files lie, relative to the folder that holds params.yaml."""

from pathlib import Path

PARAMS = Path("params.yaml")
BAD_IMAGES = Path("bad_images.txt")
CHECKPOINTS = Path(".checkpoints")
LOGS = CHECKPOINTS / "logs"  # one file for each stage
DEVICE_RUNS = CHECKPOINTS / "devices"  # one folder for each, while it is measured
FOREIGN_CHECKPOINTS = Path("checkpoints")
ABLATIONS = Path(".ablations")
SPREAD = ABLATIONS / "spread.json"  # of the students over seeds, from their newest study, for the report
RECIPES = Path("recipes")
RESULTS = Path("docs/results")

TARGETS = Path("targets")
TARGET_EXAMPLES = TARGETS / "examples"
TARGET_STAGES = TARGET_EXAMPLES / "stages.yaml"  # not dvc.yaml: DVC would take it for a pipeline
TARGET_INDEX = TARGETS / "results.json"

ARTIFACTS = Path("artifacts")
DATA = ARTIFACTS / "data"
TEACHER = ARTIFACTS / "teacher"
ENERGY = ARTIFACTS / "energy.parquet"
ENERGY_TEST = ARTIFACTS / "energy_test.parquet"
SUBSET = ARTIFACTS / "heda_subset.parquet"
SOFT_LABELS = ARTIFACTS / "soft_labels"
TEACHER_EXPORT = ARTIFACTS / "teacher_export"
STUDENTS = ARTIFACTS / "students"  # one folder for each, with those of its network and of its files
NETWORK, EXPORT = "network", "export"
DATA_CARD, CARD, MANIFEST = "data.json", "card.json", "export.json"  # in their folders
DEPLOY = ARTIFACTS / "deploy"

REPORTS = Path("reports")
TEACHER_REPORTS = REPORTS / "teacher"
STUDENT_REPORTS = REPORTS / "students"  # one folder for each
CURVES, EVALUATION, ANSWERS = "curves", "evaluation.json", "answers.npz"  # in the folder of a network's reports
CURVES_CARD = "lineage.json"  # in the folders of curves: whose they are
ENERGY_METRICS = REPORTS / "energy.json"
ENERGY_HISTOGRAM = REPORTS / "energy_histogram.csv"
SUBSET_METRICS = REPORTS / "subset.json"
BENCHMARK = REPORTS / "benchmark.json"
BENCHMARK_SAMPLES = REPORTS / "benchmark_samples.npz"
SUMMARY = REPORTS / "summary.json"
METRICS = REPORTS / "metrics.json"
PAGE = REPORTS / "report.html"
CURVES_TABLE = REPORTS / "curves.csv"


def model_files(path: Path) -> tuple[Path, ...]:
    """The files that make up an exported model: an OpenVINO IR is its .xml and the .bin beside it."""
    return (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
