"""eyegraft grafts a pretrained eye onto the answer you need: text, labels or numbers."""

__version__ = "0.1.0"

_PUBLIC = {
    "load_recipe": "eyegraft.composition",
    "prepare_data": "eyegraft.prepare",
    "train": "eyegraft.training",
    "evaluate": "eyegraft.evaluation",
    "load_run": "eyegraft.serving",
    "write_report": "eyegraft.report",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    """Import a public function on first use: `import eyegraft` alone loads no torch."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'eyegraft' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
