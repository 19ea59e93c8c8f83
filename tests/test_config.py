from __future__ import annotations

import os
import re

import pytest
from ruamel.yaml import YAML

from pipeline.config import load_params, merged
from pipeline.errors import ParamsError
from tests.conftest import ROOT, loss_params


def changed(tmp_path, *keys, value=None, delete=False):
    yaml = YAML()
    content = yaml.load(ROOT / "params.yaml")
    block = content
    for key in keys[:-1]:
        block = block[key]
    if delete:
        del block[keys[-1]]
    else:
        block[keys[-1]] = value
    path = tmp_path / "params.yaml"
    yaml.dump(content, path)
    return path


def message_of(path) -> str:
    with pytest.raises(ParamsError) as caught:
        load_params(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "params.yaml" in message
    return message


def test_the_shipped_parameters_are_valid():
    assert load_params(ROOT / "params.yaml").data.name == "digits"


@pytest.mark.parametrize("start", ["", "# all the rest is gone\n"])
def test_an_empty_file(tmp_path, start):
    (tmp_path / "params.yaml").write_text(start)
    assert message_of(tmp_path / "params.yaml").endswith("params.yaml is empty; restore the blocks of keys")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_read(tmp_path, make):
    make(tmp_path / "params.yaml")
    assert message_of(tmp_path / "params.yaml").endswith("params.yaml is not a file; put the parameters there")


@pytest.mark.parametrize("written", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b"\n", b"\r\n")])
def test_a_file_of_a_windows_editor(tmp_path, written):
    (tmp_path / "params.yaml").write_bytes(written((ROOT / "params.yaml").read_bytes()))
    assert load_params(tmp_path / "params.yaml") == load_params(ROOT / "params.yaml")


@pytest.mark.parametrize(
    ("added", "words"),
    [
        (b"# caf\xe9\n", "#x00e9"),
        (b"seed: 3\n", 'found duplicate key "seed" with value "3"'),
        (b"\tseed: 3\n", "'\\t' that cannot start any token"),
    ],
)
def test_what_yaml_does_not_allow(tmp_path, added, words):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes() + added)
    message = message_of(tmp_path / "params.yaml")
    assert words in message
    assert message.endswith("; correct it")
    assert "suppress" not in message


def test_every_shipped_knob_has_a_comment():
    lines = (ROOT / "params.yaml").read_text().splitlines()
    block = ""
    for line in lines:
        if line and not line.startswith((" ", "#")):
            block = line.split(":")[0]
        # the student's training block is documented at the teacher's
        inside_student_training = block == "distill" and line.startswith("    ") and "training" not in line
        named = block == "students" and line.startswith(" ")
        if ":" in line and not line.strip().startswith("#") and not inside_student_training and not named:
            assert "#" in line or line.strip() in ("training:", "calibration:", "int8:", "parity:"), line


def test_an_unknown_key_is_named_with_the_closest_known_one(tmp_path):
    message = message_of(changed(tmp_path, "distill", "temperatures", "high_enrgy", value=2.0))
    assert "distill.temperatures.high_enrgy is not a known key; did you mean high_energy?" in message


def test_a_parameter_of_another_loss_is_unknown_and_the_closest_of_this_one_is_named(tmp_path):
    assert "distill.loss.beta is not a known key" in message_of(changed(tmp_path, "distill", "loss", "beta", value=8.0))
    message = message_of(changed(tmp_path, "distill", "loss", value={**loss_params("dkd").model_dump(), "btea": 8.0}))
    assert "distill.loss.btea is not a known key; did you mean beta?" in message


@pytest.mark.parametrize("name", ["kd", "dkd", "mlkd", "dist", "fitnet", "at", "reviewkd"])
def test_the_block_that_params_yaml_lists_for_a_loss_is_a_valid_one(tmp_path, name):
    block = loss_params(name).model_dump()
    assert load_params(changed(tmp_path, "distill", "loss", value=block)).distill.loss.name == name


def test_a_misspelt_key_is_named_rather_than_the_one_that_it_leaves_missing(tmp_path):
    path = changed(tmp_path, "heda", "fraction", delete=True)
    path.write_text(path.read_text().replace("heda:", "heda:\n  fractoin: 0.4"))
    assert "heda.fractoin is not a known key; did you mean fraction?" in message_of(path)


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("heda", "fraction"), 1.2, "heda.fraction is 1.2"),
        (("heda", "fraction"), 0, "heda.fraction is 0"),
        (("data", "validation_fraction"), 0.9, "data.validation_fraction is 0.9"),
        (("data", "name"), "mnist", "data.name is 'mnist'"),
        (("energy", "temperature"), float("nan"), "energy.temperature"),
        (("teacher", "training", "freeze"), True, "teacher.training.freeze"),
        (("distill", "training", "epochs"), "many", "distill.training.epochs is 'many'"),
        (("teacher", "std"), [0.5, 0.5, 0], "teacher.std.2 is 0"),
        (("data", "image_size"), 7, "data.image_size: it is neither a whole number of pixels from 8 to 1024 nor [h"),
        (("data", "image_size"), [32, 1025], "data.image_size: it is neither"),
        (("data", "image_size"), [32], "data.image_size: it is neither"),
        (("data", "image_size"), "32", "data.image_size: it is neither"),
        (("data", "channels"), 4, "data.channels is 4"),
        (("data", "resize"), "fit", "data.resize is 'fit'"),
        (("data", "interpolation"), "nearest", "data.interpolation is 'nearest'"),
        (("data", "augmentation", "crop", "name"), "padd", "crop.name is 'padd'; use one of 'pad', 'resized', 'none'"),
        (("data", "augmentation", "crop", "padding"), 65, "data.augmentation.crop.padding is 65"),
        (("data", "augmentation", "crop", "scale"), [0.3, 1], "data.augmentation.crop.scale is not a known key"),
        (("data", "augmentation", "policy"), "autoaugment", "data.augmentation.policy is 'autoaugment'"),
        (("data", "augmentation", "color_jitter"), 1.5, "data.augmentation.color_jitter is 1.5"),
        (("data", "augmentation", "horizontal_flp"), True, "is not a known key; did you mean horizontal_flip?"),
        (("benchmark", "runtimes"), ["tflite"], "benchmark.runtimes"),
        (("distill", "loss", "name"), "kdd", "distill.loss.name is 'kdd'; use one of 'kd', 'dkd', 'mlkd'"),
        (("distill", "loss", "kd_weight"), -1, "distill.loss.kd_weight is -1"),
        (("distill", "loss"), "kd", "distill.loss is 'kd'"),
        (("distill", "loss"), {"ce_weight": 1.0}, "distill.loss.name is missing"),
        (("seed",), -1, "seed is -1"),
        (("export", "batch"), 4, "export.batch is 4, but benchmark.batch_size is 1; make them equal"),
        (("data",), None, "data is null; write a block of keys"),
        (("benchmark", "images"), 0, "benchmark.images is 0"),
        (("benchmark", "timing_images"), 257, "benchmark: timing_images is above images"),
        (("benchmark", "cold_rounds"), -1, "benchmark.cold_rounds is -1"),
        (("benchmark", "memory_pass"), "often", "benchmark.memory_pass is 'often'"),
        (("benchmark", "sustained_minutes"), 241, "benchmark.sustained_minutes is 241"),
        (("benchmark", "throughput"), [[0, 1]], "benchmark.throughput"),
        (("benchmark", "throughput"), [[8]], "benchmark.throughput"),
        (("benchmark", "throughput"), 8, "benchmark.throughput is 8"),
        (("benchmark", "wait_minutes"), 1441, "benchmark.wait_minutes is 1441"),
        (("benchmark", "allow_device_tuning"), None, "benchmark.allow_device_tuning is null"),
        (("teacher", "training"), 3, "teacher.training is 3; write a block of keys"),
        (("distill", "training", "epochs"), "3", "distill.training.epochs is '3': input should be a valid integer"),
        (("distill", "training", "epochs"), True, "distill.training.epochs is true: input should be a valid integer"),
        (("distill", "training", "epochs"), 3.0, "distill.training.epochs is 3.0: input should be a valid integer"),
        (("distill", "training", "learning_rate"), "0.1", "distill.training.learning_rate is '0.1': input should be a"),
        (("distill", "training", "learning_rate"), True, "distill.training.learning_rate is true: input should be a"),
        (("distill", "logit_standardization"), "yes", "distill.logit_standardization is 'yes': input should be a"),
        (("export", "teacher"), 1, "export.teacher is 1: input should be a valid boolean"),
        (("data", "channels"), True, "data.channels: it is true or false; give a number"),
        (("distill", "mean"), ["0.5"], "distill.mean.0 is '0.5': input should be a valid number"),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path, keys, value, words):
    assert words in message_of(changed(tmp_path, *keys, value=value))


def test_a_whole_number_is_a_number(tmp_path):
    assert load_params(changed(tmp_path, "distill", "training", "learning_rate", value=1)).distill.training == (
        load_params(changed(tmp_path, "distill", "training", "learning_rate", value=1.0)).distill.training
    )


@pytest.mark.parametrize("size", [8, 1024, [8, 1024]])
def test_the_image_size_is_a_side_or_height_and_width(tmp_path, size):
    loaded = load_params(changed(tmp_path, "data", "image_size", value=size)).data
    assert loaded.height_width == (tuple(size) if isinstance(size, list) else (size, size))


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"name": "resized", "scale": [0.0, 1.0], "ratio": [0.75, 1.333]}, "data.augmentation.crop.scale.0 is 0.0"),
        ({"name": "resized", "scale": [0.9, 0.3], "ratio": [0.75, 1.333]}, "crop.scale: the first number is above"),
        ({"name": "resized", "scale": [0.3, 0.9], "ratio": [2.0, 0.5]}, "crop.ratio: the first number is above"),
        ({"name": "resized", "scale": [0.3, 0.9]}, "data.augmentation.crop.ratio is missing"),
        ({"name": "none", "padding": 4}, "data.augmentation.crop.padding is not a known key"),
    ],
)
def test_a_crop_that_does_not_fit_is_named(tmp_path, block, words):
    assert words in message_of(changed(tmp_path, "data", "augmentation", "crop", value=block))


@pytest.mark.parametrize("name", ["resized", "none"])
def test_the_blocks_that_params_yaml_lists_for_a_crop_are_valid(tmp_path, name):
    text = (ROOT / "params.yaml").read_text()
    (block,) = [line.strip(" #") for line in text.splitlines() if line.strip().startswith(f"# {{name: {name}")]
    path = changed(tmp_path, "data", "augmentation", "crop", value=YAML(typ="safe").load(block))
    assert load_params(path).data.augmentation.crop.name == name


def test_quarter_turns_of_images_that_are_not_square_are_refused(tmp_path):
    path = changed(tmp_path, "data", "augmentation", "quarter_turns", value=True)
    assert load_params(path).data.augmentation.quarter_turns
    path.write_text(path.read_text().replace("image_size: 32", "image_size: [32, 24]"))
    assert "quarter_turns needs square images, but image_size is [32, 24]; set" in message_of(path)


def with_soft_labels(tmp_path, labels, distill, students=None, mix="none", **augmentation):
    """The shipped parameters with changes to the blocks soft_labels, distill and data.augmentation."""
    content = YAML(typ="safe").load(ROOT / "params.yaml")
    content["soft_labels"] |= labels
    content["distill"] |= distill
    content["heda"]["mix"] = mix
    content["data"]["augmentation"] |= augmentation
    content["students"] = students or {"student": {}}
    YAML().dump(content, tmp_path / "params.yaml")
    return tmp_path / "params.yaml"


STORED = {"view": "stored"}


def test_students_train_on_stored_answers_each_for_itself(tmp_path):
    some = {"live": {}, "fast": {"view": "stored"}}
    params = load_params(with_soft_labels(tmp_path, {"views": 8}, {}, some))
    assert [student.view for student in params.students.values()] == ["clean", "stored"]


@pytest.mark.parametrize(
    ("labels", "distill", "others", "words"),
    [
        ({}, STORED, {}, "distill.view is stored, but soft_labels.views is 0; raise it, or choose another view"),
        (
            {"views": 2},
            {},
            {"students": {"a": {"view": "stored"}}, "mix": "cutmix"},
            "students.a.view is stored, but the",
        ),
        (
            {"views": 13},
            STORED,
            {},
            "asks for 13 views of an image, but no student that uses them is trained for more than 12",
        ),
        ({"views": 9, "extra_views": 4}, STORED, {}, "soft_labels asks for 13 views"),
        ({"extra_views": 4}, {}, {}, "soft_labels: extra_views are further ones of some images, but views is 0"),
        ({"views": 2}, STORED, {"policy": "randaugment"}, "set data.augmentation.policy to none and color_jitter to 0"),
        ({"views": 2}, STORED, {"color_jitter": 0.1}, "soft_labels.views stores answers to views that are drawn again"),
        ({"views": -1}, {}, {}, "soft_labels.views is -1"),
        ({"classes": 0}, {}, {}, "soft_labels.classes is 0"),
        ({"teachers": [{"network": "resnet8"}]}, {}, {}, "soft_labels.teachers.0.checkpoint is missing; add it"),
        (
            {"teachers": [{"network": "resnet8", "checkpoint": "a", "mean": [0.5]}]},
            {},
            {},
            "soft_labels.teachers.0: mean and std belong together",
        ),
        (
            {"teachers": [{"network": "resnet8", "checkpoint": "a", "mean": [0.5], "std": [0.5]}]},
            {},
            {},
            "soft_labels.teachers[0].mean has 1 numbers, but data.channels is 3",
        ),
        ({}, {"view": "strong"}, {}, "distill.view is 'strong'"),
    ],
)
def test_stored_views_that_cannot_be_used_are_named(tmp_path, labels, distill, others, words):
    assert words in message_of(with_soft_labels(tmp_path, labels, distill, **others))


@pytest.mark.parametrize("view", ["mixed", "stored"])
def test_a_second_strong_view_needs_a_clean_one(tmp_path, view):
    path = with_soft_labels(tmp_path, {"views": 2}, {"view": view, "loss": loss_params("mlkd").model_dump()})
    assert f"distill: loss.strong_view is a second view beside a clean one, but view is {view}" in message_of(path)


def test_groups_that_overlap_are_refused(tmp_path):
    message = message_of(changed(tmp_path, "energy", "low_fraction", value=0.9))
    assert "low_fraction + high_fraction is 1.1" in message


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("training", "compile"), "on", "distill: training.compile is on, but at reads feature maps by hooks"),
        (("view",), "stored", "distill: view is stored, which has the teacher's probabilities alone, but at reads"),
    ],
)
def test_a_loss_on_feature_maps_is_neither_compiled_nor_of_stored_answers(tmp_path, keys, value, words):
    path = changed(tmp_path, "distill", *keys, value=value)
    with_loss = YAML(typ="safe").load(path)
    with_loss["distill"]["loss"] = loss_params("at").model_dump()
    YAML(typ="safe").dump(with_loss, path)
    assert words in message_of(path)


def with_students(tmp_path, entries, **distill):
    """The shipped parameters with other students, and changes to what they inherit."""
    content = YAML(typ="safe").load(ROOT / "params.yaml")
    content["students"], content["distill"] = entries, content["distill"] | distill
    YAML().dump(content, tmp_path / "params.yaml")  # keeps the order
    return tmp_path / "params.yaml"


def test_a_student_takes_from_distill_what_its_entry_does_not_change(tmp_path):
    entries = {
        "same": {},
        "mobile": {"network": "torchvision:mobilenet_v3_small", "training": {"learning_rate": 0.02}},
        "step": {"training": {"schedule": "step", "milestones": [3]}, "loss": {"kd_weight": 0.5}},
    }
    params = load_params(with_students(tmp_path, entries))
    assert list(params.students) == list(entries)
    inherited, mobile, step = params.distill, params.students["mobile"], params.students["step"]
    assert params.students["same"] == inherited
    assert mobile.network == "torchvision:mobilenet_v3_small"
    assert mobile.training == inherited.training.model_copy(update={"learning_rate": 0.02})
    assert mobile == inherited.model_copy(update={"network": mobile.network, "training": mobile.training})
    assert step.training.milestones == [3]
    assert step.loss == inherited.loss.model_copy(update={"kd_weight": 0.5})


def test_another_loss_or_crop_replaces_its_block(tmp_path):
    dkd = loss_params("dkd").model_dump()
    assert load_params(with_students(tmp_path, {"small": {"loss": dkd}})).students["small"].loss.model_dump() == dkd
    message = message_of(with_students(tmp_path, {"small": {"loss": {"name": "dkd", "ce_weight": 1.0}}}))
    assert "students.small.loss.kd_weight is missing; add it" in message
    crops = {"crop": {"name": "pad", "padding": 4}}, {"crop": {"name": "none"}}, {"crop": {"padding": 2}}
    assert merged(crops[0], crops[1]) == crops[1]
    assert merged(crops[0], crops[2]) == {"crop": {"name": "pad", "padding": 2}}


def test_the_parameters_of_a_student_are_those_of_all_with_its_block_for_distill(tmp_path):
    params = load_params(with_students(tmp_path, {"same": {}, "small": {"network": "wrn_16_2"}}))
    assert params.of_student("small") == params.model_copy(update={"distill": params.students["small"]})
    assert [params.block_of(name) for name in params.students] == ["distill", "students.small"]


NO_NAME = "cannot name a student, because it names folders and stages too; begin with a letter a-z"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        *((name, repr(name)) for name in ("a b", 1, "", "..", "x@y", "a.b", "A", "-a", "é", "a\n", "a" * 33)),
        (True, "true"),
        (None, "null"),
    ],
)
def test_what_cannot_name_a_student_is_refused(tmp_path, name, shown):
    assert f"students: {shown} {NO_NAME}" in message_of(with_students(tmp_path, {"small": {}, name: {}}))


def test_names_of_students_have_up_to_32_characters_and_are_not_that_of_the_teacher(tmp_path):
    names = ["a" * 32, "a-1", "a_1", "kd", "student"]
    assert list(load_params(with_students(tmp_path, {name: {} for name in names})).students) == names
    message = message_of(with_students(tmp_path, {"teacher": {}}))
    assert message.endswith("students: no student can be called teacher; choose another name")


NO_STUDENT = "students: it must name one student or more, for example `student: {}`; add a line"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({}, NO_STUDENT),
        (None, NO_STUDENT),
        (["small"], NO_STUDENT),
        ({"small": None}, "students: small is null; write `small: {}` for a student that takes everything from"),
        ({"small": ["resnet8"]}, "students: small is ['resnet8']; write `small: {}`"),
        ({"a": {}, "b": {}, "c": {"netwrk": "resnet8"}}, "students.c.netwrk is not a known key; did you mean network?"),
        ({"small": {1: 2}}, "students.small.1 is 1: keys should be strings"),
        ({"small": {"training": 3}}, "students.small.training is 3; write a block of keys"),
        ({"small": {"training": {"epochs": "many"}}}, "students.small.training.epochs is 'many'"),
        (
            {"small": {"training": {"epohs": 3}}},
            "students.small.training.epohs is not a known key; did you mean epochs?",
        ),
        ({"kd": {"loss": {"kd_weight": -1}}}, "students.kd.loss.kd_weight is -1"),
        ({"small": {"loss": {"name": "kdd"}}}, "students.small.loss.name is 'kdd'; use one of 'kd', 'dkd'"),
        ({"small": {"loss": {"beta": 8.0}}}, "students.small.loss.beta is not a known key; remove it"),
        ({"small": {"mean": [0.5] * 3}}, "students.small: mean and std belong together"),
        (
            {"a": {}, "small": {"mean": [0.5], "std": [0.5]}},
            "params.yaml: students.small.mean has 1 numbers, but data.channels is 3",
        ),
        ({"small": {"training": {"milestones": [3]}}}, "students.small.training: milestones belong to schedule step"),
    ],
)
def test_a_wrong_entry_of_a_student_is_one_sentence_with_its_key(tmp_path, entries, words):
    assert words in message_of(with_students(tmp_path, entries))


def test_missing_students_are_named(tmp_path):
    assert message_of(changed(tmp_path, "students", delete=True)).endswith("students is missing; add it")


def test_what_is_wrong_in_distill_is_reported_there_and_once(tmp_path):
    entries = {"a": {}, "b": {"network": "wrn_16_2"}}
    message = message_of(with_students(tmp_path, entries, assignment="none"))
    assert "distill.assignment is 'none'" in message
    assert "more after this one" not in message
    assert "students" not in message
    message = message_of(with_students(tmp_path, {"b": entries["b"]}, mean=[0.5], std=[0.5]))
    assert "distill.mean has 1 numbers, but data.channels is 3" in message


@pytest.mark.parametrize("place", ["distill", "students.small"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": "own"}, "student is own, but mode is groups, .*; set student to same, or mode to continuous"),
        ({"mode": "continuous", "mid": 8.0}, "mid is 8, but mode is continuous, whose limits .* are 6 and 2; put mid"),
        ({"mode": "continuous", "low_energy": 1.0}, "mid is 4, .* whose limits .* are 1 and 2; put mid between them"),
    ],
)
def test_temperatures_that_contradict_their_mode_are_one_sentence(tmp_path, params, place, changes, words):
    groups = params.distill.temperatures.model_dump()
    if place == "distill":
        message = message_of(with_students(tmp_path, {"small": {}}, temperatures=groups | changes))
    else:
        message = message_of(with_students(tmp_path, {"small": {"temperatures": changes}}, temperatures=groups))
    assert re.search(rf"{place}\.temperatures: {words}", message), message
    assert "more after this one" not in message


def test_the_limits_of_continuous_temperatures_stand_in_either_order(tmp_path):
    changes = {"mode": "continuous", "student": "own", "of": "max_logit", "low_energy": 2.0, "high_energy": 6.0}
    path = with_students(tmp_path, {"small": {"temperatures": changes}})
    assert load_params(path).students["small"].temperatures.limits == (2.0, 6.0)


def test_a_step_schedule_needs_milestones(tmp_path):
    assert "milestone" in message_of(changed(tmp_path, "teacher", "training", "schedule", value="step"))


def test_files_of_a_fixed_batch_have_no_other_point_of_throughput(tmp_path):
    path = changed(tmp_path, "export", "batch", value=1)
    path.write_text(path.read_text().replace("throughput: []", "throughput: [[1, 2], [8, 0]]"))
    assert "export.batch is 1, but benchmark.throughput asks for batch 8; remove that point" in message_of(path)


def test_a_missing_key_is_named(tmp_path):
    assert "budget.max_size_mb is missing; add it" in message_of(
        changed(tmp_path, "budget", "max_size_mb", delete=True)
    )


@pytest.mark.parametrize("text", ["a: [1", "a: 1\na: 2\n", "- 1\n", "", "\x00"])
def test_a_file_that_is_not_a_params_file_is_refused(tmp_path, text):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    message_of(path)


def test_a_missing_file_is_refused(tmp_path):
    message_of(tmp_path / "params.yaml")
