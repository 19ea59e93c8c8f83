"""Networks of torchvision and timm: build them, and get the weights that these libraries offer for them."""

import difflib
import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from operator import mod
from typing import Any

from torch import Tensor, nn

State = Mapping[str, Tensor]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of each channel

# Without these options, both networks also return auxiliary logits in training mode.
_LOGITS_ONLY: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
_RATES = {"torchvision": ("dropout", "stochastic_depth_prob"), "timm": ("drop_rate", "drop_path_rate")}


class UnknownNetworkError(ValueError):
    """No network has this name; the message has the closest names and the command that lists all names."""


class NetworkOptionError(ValueError):
    """The network does not have what is asked of it; the message is one sentence."""


class NoWeightsError(ValueError):
    """The library offers no weights for this network, or they could not be downloaded; the message is one sentence."""


def owns(name: str) -> bool:
    """Whether ``name`` has the prefix of a library."""
    return name.startswith(("torchvision:", "timm:"))


def tag(name: str) -> str | None:
    """The tag of a timm name, which names pretrained weights: a1_in1k of timm:resnet18.a1_in1k."""
    _, separator, found = name.partition(".")
    return found if separator and name.startswith("timm:") else None


def build(
    name: str, num_classes: int, image_size: tuple[int, int] | None = None, dropout: float = 0.0, drop_path: float = 0.0
) -> nn.Module:
    """Build a classifier with fresh weights; arguments and errors as of :func:`models.build`."""
    library, _, plain = name.partition(":")
    _check_known(library, plain)
    options = {option: rate for option, rate in zip(_RATES[library], (dropout, drop_path), strict=True) if rate}
    size = _size_option(library, plain, image_size)
    if library == "torchvision":
        options |= _LOGITS_ONLY.get(plain, {})
    try:
        network = _create(library, plain, num_classes, options | size)
    except TypeError:  # an option that the network does not have
        if not dropout and not drop_path:
            raise
        if dropout and drop_path:  # one of them may be there
            build(name, num_classes, image_size, dropout)
            build(name, num_classes, image_size, 0.0, drop_path)
        raise NetworkOptionError(f"{name} has no {'dropout' if dropout else 'drop_path'}; set it to 0") from None
    except (AssertionError, ValueError) as error:
        if not size:
            raise
        reason = str(error).partition("\n")[0] or "its parts would not fit"
        raise NetworkOptionError(
            f"{name} cannot be built for images of {_times(image_size)} pixels ({reason}); change data.image_size"
        ) from None
    _refuse_unseen_border(name, network, image_size if size else None)
    return network


def pretrained(name: str) -> State:
    """The weights that the library offers, from its cache or downloaded: of all classes, at the library's image size.

    Raises:
        UnknownNetworkError: no network has this name.
        NoWeightsError: there are none, or they could not be downloaded.
    """
    library, _, plain = name.partition(":")
    if not owns(name):
        raise NoWeightsError(f"only torchvision: and timm: names have pretrained weights, not {name}; name a file")
    _check_known(library, plain)
    address = _address(library, plain)
    if address is None:
        raise NoWeightsError(f"{library} offers no weights for {plain}; name a file, or another network or tag")
    try:
        if library == "torchvision":
            from torchvision.models import get_model

            options = {"aux_logits": False} if plain in _LOGITS_ONLY else {}
            return dict(get_model(plain, weights="DEFAULT", **options).state_dict())
        import timm

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of every try; the error says it once
        return dict(timm.create_model(plain, pretrained=True).state_dict())
    except Exception as error:  # the libraries let errors of several HTTP clients through
        reason = str(error).strip().partition("\n")[0].partition(". ")[0][:200] or type(error).__name__
        raise NoWeightsError(
            f"the weights of {name} could not be downloaded ({reason}); get {address} on another machine, and name the "
            "file"
        ) from None


def input_statistics(name: str) -> Statistics | None:
    """Mean and std of the images that the library's weights were trained with; None for other networks."""
    library, _, plain = name.partition(":")
    if library == "timm":
        from timm.models import get_pretrained_cfg

        config = get_pretrained_cfg(plain)
        return None if config is None else (tuple(config.mean), tuple(config.std))
    if library == "torchvision":
        from torchvision.models import get_model_weights

        # with weights the library's own networks change their input from ImageNet's normalisation to this one
        if plain in _LOGITS_ONLY:
            return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        transforms = get_model_weights(plain).DEFAULT.transforms()
        return tuple(transforms.mean), tuple(transforms.std)
    return None


def resampled(name: str, state: State, num_classes: int, image_size: tuple[int, int]) -> State | None:
    """The tensors of a network that was trained at another image size, with its positions resampled to this one.

    Returns:
        None if the library cannot do it. A classifier of other classes than ``num_classes`` stays as it is.
    """
    library, _, plain = name.partition(":")
    size = _size_option(library, plain, image_size)
    if not size:
        return None
    try:
        if library == "torchvision":
            from torchvision.models.vision_transformer import interpolate_embeddings

            network: Any = build(name, num_classes, image_size)
            found: State = interpolate_embeddings(image_size[0], network.patch_size, OrderedDict(state))
            return found
        import timm

        options = {"pretrained_cfg_overlay": {"state_dict": dict(state)}, "num_classes": num_classes, **size}
        own: State = timm.create_model(plain, pretrained=True, **options).state_dict()
    except (AssertionError, KeyError, RuntimeError, ValueError):  # they are of another network
        return None
    # timm leaves out a classifier of other classes than those of its own weights
    classes = [key for key, value in own.items() if value.shape[:1] == (num_classes,) and key in state]
    return {**own, **{key: state[key] for key in classes if state[key].shape[1:] == own[key].shape[1:]}}


def unknown(name: str, prefix: str, known: Iterable[str], listing: str) -> UnknownNetworkError:
    """The error about a name that is not among the ``known`` ones."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    architecture = name.partition(".")[0].lower()
    matches = difflib.get_close_matches(architecture, by_lower_case)
    closest = ", ".join(prefix + by_lower_case[match] for match in matches)
    suggestion = f"the closest names are {closest}" if closest else "no known name is close to it"
    libraries = "" if prefix else ", or take torchvision:<name> or timm:<name> from these libraries"
    return UnknownNetworkError(
        f"There is no network {prefix}{name}: {suggestion}; list the names with {listing}{libraries}."
    )


def _check_known(library: str, plain: str) -> None:
    if library == "torchvision":
        from torchvision import models

        # only the classifiers: the library's other families (detection, video, ...) do not map an image to logits
        known = models.list_models(module=models)
        if plain not in known:
            listing = "python -c 'import torchvision.models as m; print(*m.list_models(m))'"
            raise unknown(plain, "torchvision:", known, listing)
        return
    import timm

    if not timm.is_model(plain):
        raise unknown(plain, "timm:", timm.list_models(), "python -c 'import timm; print(*timm.list_models())'")
    architecture, separator, _ = plain.partition(".")
    tags = timm.list_pretrained(f"{architecture}.*") if separator else []
    if separator and plain not in tags:  # timm rejects it too, even if it loads no weights
        known = ", ".join(each.partition(".")[2] for each in tags) or "none"
        listing = f"python -c 'import timm; print(*timm.list_pretrained(\"{architecture}.*\"))'"
        raise UnknownNetworkError(
            f"timm:{plain} names weights that timm does not have, but {known}; {listing} lists them."
        )


def _create(library: str, plain: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
    network: nn.Module
    if library == "torchvision":
        from torchvision.models import get_model

        network = get_model(plain, weights=None, num_classes=num_classes, **options)
    else:
        import timm

        network = timm.create_model(plain, pretrained=False, num_classes=num_classes, **options)
    return network


def _size_option(library: str, plain: str, image_size: tuple[int, int] | None) -> dict[str, Any]:
    """The option that builds the network for images of this size; empty if the network takes any size."""
    if image_size is None:
        return {}
    if library == "torchvision":
        if not plain.startswith("vit_"):
            return {}
        if image_size[0] != image_size[1]:
            raise NetworkOptionError(
                f"torchvision:{plain} takes square images alone, not {_times(image_size)}; change data.image_size"
            )
        return {"image_size": image_size[0]}
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(plain)
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


def _refuse_unseen_border(name: str, network: nn.Module, image_size: tuple[int, int] | None) -> None:
    """Refuse image sizes that patches do not fill: networks of timm ignore the rest without a word."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if image_size is None or not isinstance(patch, tuple) or not any(map(mod, image_size, patch)):
        return
    fitting = [side - side % part or part for side, part in zip(image_size, patch, strict=True)]
    raise NetworkOptionError(
        f"{name} sees patches of {_times(patch)} pixels, which do not fill images of {_times(image_size)}; set "
        f"data.image_size to [{fitting[0]}, {fitting[1]}] or other multiples"
    )


def _address(library: str, plain: str) -> str | None:
    """Where the library downloads the weights from; None if it offers none."""
    if library == "torchvision":
        from torchvision.models import get_model_weights

        return str(get_model_weights(plain).DEFAULT.url)
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(plain)
    if config is None:
        return None
    hub = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors" if config.hf_hub_id else None
    return hub or config.url or None


def _times(image_size: tuple[int, int] | None) -> str:
    return " x ".join(map(str, image_size or ()))
