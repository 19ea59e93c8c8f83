from __future__ import annotations

import hashlib
import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decoding import ImageError, decode
from pipeline.data.sources import open_source
from pipeline.errors import DataError
from tests.conftest import squashed


def source_of(params, **changes):
    return open_source(params.data.model_copy(update=changes))


def test_digits_are_the_real_scans(params):
    source = source_of(params)
    train = source.splits["train"]
    assert len(train.labels) == 1797
    assert source.class_names == tuple("0123456789")
    pixels = train.pixels(0, squashed(8))
    assert pixels.shape == (8, 8, 3)
    assert pixels.max() > 200


def test_an_image_folder_gives_sorted_classes_and_rgb_images(params, image_folder):
    source = source_of(params, name="imagefolder", root=str(image_folder))
    assert source.class_names == ("ant", "bee", "cat")
    assert set(source.splits) == {"train"}
    train = source.splits["train"]
    assert np.bincount(train.labels).tolist() == [16, 16, 16]
    assert {decode(path).mode for path in train.paths} == {"RGB"}


def add_split(root, name, classes=("ant", "bee", "cat")):
    for label in classes:
        (root / name / label).mkdir(parents=True)
        Image.new("RGB", (5, 5)).save(root / name / label / "x.png")


def test_given_val_and_test_folders_are_used(params, image_folder):
    add_split(image_folder, "val")
    add_split(image_folder, "test")
    source = source_of(params, name="imagefolder", root=str(image_folder))
    assert source.splits["test"].labels.tolist() == [0, 1, 2]


def test_a_class_that_a_split_lacks_is_named(params, image_folder):
    add_split(image_folder, "val", ["bee"])
    with pytest.raises(DataError, match=r"val holds no image of class 'ant' and 1 other classes .*add some, or remove"):
        source_of(params, name="imagefolder", root=str(image_folder))


def test_classes_that_differ_in_case_only_are_named(params, image_folder):
    (image_folder / "train" / "Bee").mkdir()
    with pytest.raises(DataError, match=r"'Bee' and 'bee' in .* differ in capitals, .* only; rename or merge"):
        source_of(params, name="imagefolder", root=str(image_folder))


def test_file_names_that_differ_in_case_only_are_a_problem(params, image_folder):
    folder = image_folder / "train" / "bee" / "nested"
    (folder / "3.JPG").write_bytes((folder / "3.jpg").read_bytes())
    (problem,) = source_of(params, name="imagefolder", root=str(image_folder)).problems
    assert problem.startswith(f"{folder}/3.jpg and {folder}/3.JPG differ in capitals")


@pytest.mark.parametrize("name", [b"two\nlines.jpg", b"\xff.jpg"])
def test_a_file_name_that_no_manifest_can_hold_is_a_problem(params, image_folder, name):
    folder = image_folder / "train" / "bee" / "nested"
    path = os.fsdecode(os.path.join(os.fsencode(folder), name))  # noqa: PTH118  pathlib takes no bytes
    Path(path).write_bytes((folder / "3.jpg").read_bytes())
    (problem,) = source_of(params, name="imagefolder", root=str(image_folder)).problems
    assert problem.startswith(ascii(path))
    assert "cannot be shown; rename the file" in problem


def test_files_that_are_no_images_are_left_out_with_one_warning(params, image_folder, caplog):
    for name in ("notes.txt", "archive.zip", ".DS_Store"):
        (image_folder / "train" / "ant" / name).write_text("x")
    train = source_of(params, name="imagefolder", root=str(image_folder)).splits["train"]
    assert len(train.labels) == 48
    assert len(caplog.messages) == 1
    assert "left out 2 files without one of the suffixes" in caplog.messages[0]


def test_images_are_turned_upright_by_their_exif_orientation(params, image_folder):
    path = image_folder / "train" / "ant" / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 10)).save(path, exif=exif)
    train = source_of(params, name="imagefolder", root=str(image_folder)).splits["train"]
    assert (10, 30) in {decode(each).size for each in train.paths}


def test_a_missing_folder_is_one_sentence(params, tmp_path):
    with pytest.raises(DataError, match=r"nowhere is not a folder; set it to"):
        source_of(params, name="imagefolder", root=str(tmp_path / "nowhere"))


def test_a_folder_without_train_is_one_sentence(params, tmp_path):
    with pytest.raises(DataError, match="has no folder train/"):
        source_of(params, name="imagefolder", root=str(tmp_path))


def test_a_class_that_only_the_test_folder_has_is_one_sentence(params, image_folder):
    (image_folder / "test" / "dog").mkdir(parents=True)
    with pytest.raises(DataError, match=r"dog is a class that train/ does not have"):
        source_of(params, name="imagefolder", root=str(image_folder))


def decoded(params, root, path):
    assert path in source_of(params, name="imagefolder", root=str(root)).splits["train"].paths
    return decode(path)


def test_a_truncated_image_is_named(params, image_folder):
    path = image_folder / "train" / "bee" / "nested" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    train = source_of(params, name="imagefolder", root=str(image_folder)).splits["train"]
    with pytest.raises(DataError, match=r"bee/nested/1\.jpg cannot be decoded .*; replace or remove the file"):
        [train.pixels(i, squashed(8)) for i in range(48)]


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "it is empty"), (b"not an image at all", "it is no JPEG, PNG, WebP")]
)
def test_a_file_without_an_image_in_it_is_named(params, image_folder, content, reason):
    path = image_folder / "train" / "ant" / "odd.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"odd\.png cannot be decoded \(.*{reason}"):
        decoded(params, image_folder, path)


def test_the_content_decides_and_not_the_ending(params, image_folder):
    path = image_folder / "train" / "ant" / "odd.jpg"
    Image.new("RGB", (4, 4), (9, 8, 7)).save(path, format="PNG")
    assert decoded(params, image_folder, path).getpixel((0, 0)) == (9, 8, 7)


def test_a_format_beyond_the_listed_ones_is_not_opened(params, image_folder):
    path = image_folder / "train" / "ant" / "odd.png"
    Image.new("RGB", (4, 4)).save(path, format="GIF")
    with pytest.raises(ImageError, match=r"odd\.png is a GIF file, not JPEG, .*; convert it"):
        decoded(params, image_folder, path)


def test_an_image_of_100_megapixels_is_named_before_it_is_decoded(params, image_folder):
    path = image_folder / "train" / "ant" / "huge.png"
    Image.new("1", (10_000, 10_000)).save(path)
    with pytest.raises(ImageError, match=r"huge\.png has 10000 x 10000 pixels, more than 64 megapixels; scale it down"):
        decoded(params, image_folder, path)


def test_an_image_beyond_pillows_own_limit_is_named_in_the_same_way(params, image_folder, recwarn):
    path = image_folder / "train" / "ant" / "bomb.png"
    _write_png(path, 20_000, 10_000, 8, 2, b"")
    with pytest.raises(ImageError, match=r"bomb\.png has more than 64 megapixels; scale it down or remove it"):
        decoded(params, image_folder, path)
    assert not recwarn.list


def _write_png(path, width, height, bits, colour_type, rows):
    """A PNG, byte by byte; ``rows`` with the filter byte of each."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_of_16_bits_grey_the_upper_8_are_kept(params, image_folder, ending):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 256 + 200
    path = image_folder / "train" / "ant" / f"deep.{ending}"
    Image.fromarray(ramp).save(path)
    image = np.asarray(decoded(params, image_folder, path))
    np.testing.assert_array_equal(image[..., 0], np.arange(256).reshape(16, 16))
    assert image.shape == (16, 16, 3)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4)])
def test_of_16_bits_a_channel_the_upper_8_are_kept(params, image_folder, colour_type, channels):
    path = image_folder / "train" / "ant" / "deep.png"
    row = np.repeat((np.arange(256) * 256 + 200).astype(">u2")[:, None], channels, axis=1)
    _write_png(path, 256, 1, 16, colour_type, b"\0" + row.tobytes())
    image = np.asarray(decoded(params, image_folder, path))
    np.testing.assert_array_equal(image, np.repeat(np.arange(256)[None, :, None], 3, axis=2))


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_transparency_of_a_palette_is_left_out_without_a_warning(params, image_folder, transparency, recwarn):
    path = image_folder / "train" / "ant" / "odd.png"
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 7, 8, 9])
    image.putpixel((1, 0), 1)
    image.save(path, transparency=transparency)
    rgb = decoded(params, image_folder, path)
    assert [rgb.getpixel((x, 0)) for x in range(2)] == [(1, 2, 3), (7, 8, 9)]
    assert not recwarn.list


def test_an_image_of_floats_is_named(params, image_folder):
    path = image_folder / "train" / "ant" / "floats.tif"
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    with pytest.raises(ImageError, match=r"floats\.tif holds floats"):
        decoded(params, image_folder, path)


@pytest.mark.parametrize(
    ("mode", "colour", "ending"),
    [("CMYK", (0, 255, 255, 0), "jpg"), ("P", 0, "png"), ("L", 76, "webp"), ("1", 1, "png")],
)
def test_every_colour_mode_becomes_rgb(params, image_folder, mode, colour, ending):
    path = image_folder / "train" / "ant" / f"odd.{ending}"
    Image.new(mode, (6, 6), colour).save(path)
    assert decoded(params, image_folder, path).mode == "RGB"


def folder_source(params, root):
    return source_of(params, name="imagefolder", root=str(root))


@pytest.mark.parametrize(
    "name", [".ipynb_checkpoints", ".thumbnails", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"]
)
def test_hidden_folders_and_those_of_systems_are_no_classes_and_hold_no_images(params, image_folder, caplog, name):
    for parent in (image_folder, image_folder / "train", image_folder / "train/bee"):
        (parent / name).mkdir()
        Image.new("RGB", (4, 4)).save(parent / name / "copy.png")
    source = folder_source(params, image_folder)
    assert source.class_names == ("ant", "bee", "cat")
    assert len(source.splits["train"].labels) == 48
    assert [message for message in caplog.messages if "left out 2 hidden files and folders" in message]
    assert len(caplog.messages) == 1


def test_hidden_images_are_left_out(params, image_folder, caplog):
    for name in ("._0.jpg", ".trashed-0.jpg"):
        (image_folder / "train/ant" / name).write_bytes(b"\0\5\x16\7")
    assert len(folder_source(params, image_folder).splits["train"].labels) == 48
    assert "left out 2 hidden files" in caplog.text


@pytest.mark.parametrize("target", ["..", "../..", "../../..", "/", "../bee", "."])
def test_a_link_to_a_folder_that_is_read_already_is_named(params, image_folder, target):
    (image_folder / "train/cat/loop").symlink_to(target)
    with pytest.raises(DataError, match=r"cat/loop and .* are the same folder, .*; remove the link"):
        folder_source(params, image_folder)


def test_a_link_in_a_circle_is_named(params, image_folder):
    (image_folder / "train/cat/circle.png").symlink_to("circle.png")
    (problem,) = folder_source(params, image_folder).problems
    assert "circle.png is a link to 'circle.png', which is missing" in problem


def test_two_splits_or_classes_that_are_one_folder_are_named(params, image_folder):
    add_split(image_folder, "val")
    (image_folder / "test").symlink_to("val")
    with pytest.raises(DataError, match=r"test and .*val are the same folder"):
        folder_source(params, image_folder)
    (image_folder / "test").unlink()
    (image_folder / "train/dog").symlink_to("cat")
    add_split(image_folder, "val2")
    with pytest.raises(DataError, match=r"train/dog and .*train/cat are the same folder"):
        folder_source(params, image_folder)


def test_folders_and_files_elsewhere_are_read_by_links(params, image_folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (image_folder / "train/cat").rename(elsewhere / "cat")
    (image_folder / "train/cat").symlink_to(elsewhere / "cat")
    image = next(path for path in (image_folder / "train/ant").rglob("*.*") if path.is_file())
    image.rename(elsewhere / image.name)
    image.symlink_to(elsewhere / image.name)
    source = folder_source(params, image_folder)
    assert np.bincount(source.splits["train"].labels).tolist() == [16, 16, 16]
    assert not source.problems


def test_an_image_of_two_classes_or_splits_is_a_problem_and_one_of_a_class_twice_is_not(params, image_folder):
    train = image_folder / "train"
    image = next(path for path in (train / "ant").rglob("*.*") if path.is_file())
    (train / "ant" / f"again{image.suffix}").symlink_to(image)
    assert not folder_source(params, image_folder).problems
    (train / "bee" / f"again{image.suffix}").symlink_to(image)
    (problem,) = folder_source(params, image_folder).problems
    assert f"bee/again{image.suffix} and" in problem
    assert "are the same file in two classes or splits" in problem


def test_broken_links_and_pipes_are_listed_without_being_opened(params, image_folder):
    (image_folder / "train/ant/gone.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(image_folder / "train/bee/pipe.png")
    gone, pipe = folder_source(params, image_folder).problems
    assert "gone.jpg is a link to 'nowhere.jpg', which is missing; restore that file or remove the link" in gone
    assert "pipe.png is no regular file; remove it" in pipe
    with pytest.raises(ImageError, match="no regular file"):
        decode(image_folder / "train/bee/pipe.png")


@pytest.mark.parametrize(("name", "split"), [("valid", "val"), ("Validation", "val"), ("TEST", "test")])
def test_other_names_of_splits_are_taken(params, image_folder, name, split):
    add_split(image_folder, name)
    assert set(folder_source(params, image_folder).splits) == {"train", split}


def test_two_folders_of_one_split_are_named(params, image_folder):
    add_split(image_folder, "val")
    add_split(image_folder, "valid")
    with pytest.raises(DataError, match=r"val and .*valid are both the split val; merge them or rename one"):
        folder_source(params, image_folder)


def test_a_folder_of_the_classes_that_is_no_split_is_warned_of(params, image_folder, caplog):
    add_split(image_folder, "holdout", ["bee"])
    (image_folder / "notes").mkdir()
    folder_source(params, image_folder)
    (message,) = caplog.messages
    assert "holdout holds classes of train/ but is not read; name it val or test to use it" in message


def test_images_outside_of_the_class_folders_are_warned_of(params, image_folder, caplog):
    Image.new("RGB", (4, 4)).save(image_folder / "train/stray.png")
    assert len(folder_source(params, image_folder).splits["train"].labels) == 48
    (message,) = caplog.messages
    assert "left out 1 images that lie in no class folder, such as" in message


def test_a_class_is_the_same_however_its_accents_are_encoded(params, image_folder):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    (image_folder / "train/cat").rename(image_folder / "train" / composed)
    add_split(image_folder, "val", ["ant", "bee", decomposed])
    source = folder_source(params, image_folder)
    assert source.class_names == ("ant", "bee", composed)
    assert source.splits["val"].labels.tolist() == [0, 1, 2]
    (image_folder / "train" / decomposed).mkdir()
    with pytest.raises(DataError, match="the encoding of accents"):
        folder_source(params, image_folder)


@pytest.mark.parametrize("name", ["Cat", "cat ", "CAT"])
def test_a_class_of_val_that_only_looks_like_one_of_train_is_told_so(params, image_folder, name):
    add_split(image_folder, "val", ["ant", "bee", name])
    with pytest.raises(DataError, match=rf"val/{name} is a class that train/ does not have; rename it to 'cat'"):
        folder_source(params, image_folder)


def exif_block(tags: bytes) -> bytes:
    return b"Exif\0\0MM\0*\0\0\0\x08" + tags


@pytest.mark.parametrize(
    ("exif", "size"),
    [
        # orientation 6 and XResolution -1/0, a signed rational
        (exif_block(struct.pack(">HHHLHHHHLLLll", 2, 0x0112, 3, 1, 6, 0, 0x011A, 10, 1, 38, 0, -1, 0)), (10, 30)),
        (exif_block(struct.pack(">HHHLHHL", 1, 0x0112, 3, 1, 99, 0, 0)), (30, 10)),  # an orientation that there is not
        (exif_block(struct.pack(">HHHLL", 9, 0x0112, 2, 99, 7)), (30, 10)),  # text that ends beyond the block
        (exif_block(b"\xff" * 40), (30, 10)),
        (b"Exif\0\0", (30, 10)),
    ],
)
def test_damaged_metadata_do_not_keep_an_image_from_being_read(tmp_path, exif, size, recwarn):
    Image.new("RGB", (30, 10)).save(tmp_path / "photo.jpg", exif=exif)
    assert decode(tmp_path / "photo.jpg").size == size
    assert decode(tmp_path / "photo.jpg", (4, 4)).size[0] * 3 >= size[0]


@pytest.mark.parametrize(
    "error", [struct.error("short"), ZeroDivisionError(), KeyError("x"), zlib.error("\x1b[2J"), EOFError()]
)
def test_whatever_a_decoder_raises_is_one_sentence_with_the_path(tmp_path, monkeypatch, error):
    Image.new("RGB", (4, 4)).save(tmp_path / "odd.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(ImageError, match=r"odd\.png cannot be decoded \(.+\); replace or remove the file") as raised:
        decode(tmp_path / "odd.png")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is a HEIC file, not JPEG, .*; convert it to JPEG or PNG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "is an AVIF file"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "is a video, .*; take the wanted frames out of it"),
        (b"GIF89a\1\0\1\0", "is a GIF file"),
        (b"\0\0\0\x0cJXL \r\n", "is a JPEG XL file"),
        (b"\0\0\0\x0cjP  \r\n", "is a JPEG 2000 file"),
        (b"8BPS\0\1", "is a Photoshop file"),
        (b"%PDF-1.7", "is a PDF file"),
        (b"<?xml version='1.0'?>\n<svg>", "is an SVG drawing"),
        (b"\n<!DOCTYPE html><html>", "is a saved web page, .*; download the file behind its link"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a pointer of Git LFS, .*; run `git lfs pull`"),
        (b"PK\3\4\x14", "is an archive, .*; unpack it"),
    ],
)
def test_what_lies_under_the_name_of_an_image_is_named(tmp_path, content, words):
    (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=words):
        decode(tmp_path / "photo.jpg")


@pytest.fixture
def tiny_imagenet(tmp_path):
    """The official layout: three classes out of order, train images in a folder of their own, one grey-scale."""
    root = tmp_path / "tiny-imagenet-200"
    wnids = ["n03", "n01", "n02"]
    for wnid in wnids:
        folder = root / "train" / wnid / "images"
        folder.mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for i in range(4):
            Image.new("L" if i == 0 else "RGB", (64, 64)).save(folder / f"{wnid}_{i}.JPEG")
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane\nn99\tother\n")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for i, wnid in enumerate(["n02", "n03", "n01", "n02"]):
        Image.new("RGB", (64, 64), (i, i, i)).save(root / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t63\t63")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


def test_tiny_imagenet_in_its_official_layout(params, tiny_imagenet):
    source = source_of(params, name="tiny-imagenet", root=str(tiny_imagenet))
    assert source.class_names == ("goldfish (n01)", "crane (n02)", "crane (n03)")
    assert set(source.splits) == {"train", "test"}
    assert np.bincount(source.splits["train"].labels).tolist() == [4, 4, 4]
    test = source.splits["test"]
    assert test.labels.tolist() == [0, 1, 1, 2]
    assert [test.pixels(i, squashed(8))[0, 0, 0] for i in range(4)] == pytest.approx([2, 0, 3, 1], abs=1)


def test_tiny_imagenet_has_the_classes_of_its_folders_whatever_its_list_says(params, tiny_imagenet):
    (tiny_imagenet / "wnids.txt").write_text("n03\nn0")
    source = source_of(params, name="tiny-imagenet", root=str(tiny_imagenet))
    assert source.class_names == ("goldfish (n01)", "crane (n02)", "crane (n03)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "words.txt").unlink(), r"words\.txt cannot be read .*unpacked data set"),
        (
            lambda root: (root / "val" / "val_annotations.txt").write_text("a.JPEG\tn77\n"),
            "gives a.JPEG no class of train/",
        ),
        (lambda root: (root / "train" / "n01").rename(root / "train" / "n05"), "gives val_2.JPEG no class of train/"),
        (lambda root: (root / "train" / "n01" / "images").rename(root / "elsewhere"), "no folder train/n01/images/"),
        (lambda root: (root / "train" / "n04" / "images").mkdir(parents=True), "train holds no image of class 'n04"),
    ],
)
def test_a_damaged_tiny_imagenet_is_one_sentence(params, tiny_imagenet, change, message):
    change(tiny_imagenet)
    with pytest.raises(DataError, match=message):
        source_of(params, name="tiny-imagenet", root=str(tiny_imagenet))


def test_the_val_split_of_imagenet_is_the_test_split(params, image_folder):
    add_split(image_folder, "val")
    source = source_of(params, name="imagenet", root=str(image_folder))
    assert set(source.splits) == {"train", "test"}
    assert source.splits["test"].labels.tolist() == [0, 1, 2]


def test_an_unsorted_val_split_of_imagenet_is_one_sentence(params, image_folder):
    (image_folder / "val").mkdir()
    Image.new("RGB", (5, 5)).save(image_folder / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="has no class folders; sort its images"):
        source_of(params, name="imagenet", root=str(image_folder))


def test_a_class_name_that_cannot_be_shown_is_refused(params, image_folder):
    (image_folder / "train" / "two\nlines").mkdir()
    with pytest.raises(DataError, match="cannot be shown; rename it"):
        source_of(params, name="imagefolder", root=str(image_folder))


def _write_cifar(folder, files, rows_per_file, label_key):
    """The published binary layout, with random pixels; returns each file's MD5."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    sums = {}
    for name in files:
        content = {
            "data": generator.integers(0, 256, (rows_per_file, 3072), dtype=np.uint8),
            label_key: generator.integers(0, 3, rows_per_file).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()  # noqa: S324  the format's own checksum
    return sums


def test_cifar10_is_read_from_a_local_root_with_its_checksums(params, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    sums = _write_cifar(folder, ["data_batch_1", "test_batch"], 6, "labels")
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b", "c"]}))
    meta = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()  # noqa: S324
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    source = source_of(params, name="cifar10", root=str(tmp_path))
    assert source.class_names == ("a", "b", "c")
    assert {name: len(split.labels) for name, split in source.splits.items()} == {"train": 6, "test": 6}
    assert source.splits["test"].pixels(3, squashed(8)).shape == (8, 8, 3)


def test_a_failed_download_says_what_to_put_where(params, tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")
    with pytest.raises(DataError, match=r"cifar100 could not be downloaded .* by hand"):
        source_of(params, name="cifar100", root=str(tmp_path))
