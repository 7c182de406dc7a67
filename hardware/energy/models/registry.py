"""Energy models by name. Whoever makes a model registers it here, and then it works wherever a name is asked for."""

from __future__ import annotations

from pathlib import Path

from hardware.energy.errors import EnergyModelError
from hardware.energy.models.contract import EnergyModel
from hardware.energy.models.price_table import load_energy_model

_REGISTERED: dict[str, EnergyModel] = {}


def register_energy_model(*models: EnergyModel, replace: bool = False) -> None:
    """Make models known by their names, to `energy_model`, `estimate_energy` and every comparison.

    Parameters
    ----------
    *models : EnergyModel
        Of the package's own files, of yours, or read from a file by `load_energy_model`.
    replace : bool
        Put them in place of others of the same names, as who tries out figures does.

    Raises
    ------
    EnergyModelError
        It is no model, does not say its name, source or precision, or has the name of another.

    Examples
    --------
    >>> register_energy_model(load_energy_model("my-chip.toml"))
    >>> estimate_energy(trace, graph, model="my-chip").energy_mj
    """
    for model in models:
        if not isinstance(model, EnergyModel):
            raise EnergyModelError(f"{model!r} is no energy model; give an instance of a subclass of EnergyModel")
        for key in ("name", "source", "precision"):
            if not getattr(model, key):
                raise EnergyModelError(f"{model.name or type(model).__name__}: has no {key}, which estimates say")
        other = _REGISTERED.get(model.name, model)
        if other != model and not replace:
            raise EnergyModelError(
                f"{model.name}: a {type(other).__name__} is registered under this name ({other.source}); choose "
                "another name, or replace it with replace=True"
            )
        _REGISTERED[model.name] = model


def energy_model(model: str | Path | EnergyModel) -> EnergyModel:
    """Return a model by name or from its file.

    Raises
    ------
    EnergyModelError
        There is no such model.
    """
    if isinstance(model, EnergyModel):
        return model
    if str(model) in _REGISTERED:
        return _REGISTERED[str(model)]
    if Path(model).suffix in (".json", ".toml"):
        return load_energy_model(model)
    raise EnergyModelError(
        f"energy model {str(model)!r} is not known; choose one of {', '.join(_REGISTERED)}, or give a .json or .toml "
        "file"
    )


def energy_models() -> dict[str, EnergyModel]:
    """Return all registered models, by name: first those that come with the package."""
    return dict(_REGISTERED)
