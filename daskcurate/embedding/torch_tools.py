"""What of torch is needed: the only module of embedding that imports it, and only where a model asks for it."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

_lock = threading.Lock()
_running = 0
_threads = 0


def require_torch(what: str) -> Any:
    """Return torch; raise ImportError with the extra that has it."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"{what} needs torch: pip install 'daskcurate[torch]'") from error
    return torch


def is_module(model: Any) -> bool:
    """Tell whether ``model`` is a torch module, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def is_tensor(value: Any) -> bool:
    """Tell whether ``value`` is a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_array(value: Any) -> Any:
    """Return a tensor as a NumPy array, bfloat16 as float32; anything else as it is."""
    if not is_tensor(value):
        return value
    value = value.detach().cpu()
    return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()


def chosen_device(device: str) -> str:
    """Return ``cpu`` or ``cuda``, whichever is meant and there."""
    torch = require_torch("a torch model")
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise RuntimeError("device='cuda' is not possible: torch finds no GPU on this worker")
    return "cuda" if found and device != "cpu" else "cpu"


def on_host(module: Any) -> Any:
    """Return a module that can be loaded on machines without its device: a copy if it is on a GPU."""
    import copy

    tensors = [*module.parameters(), *module.buffers()]
    if all(item.device.type == "cpu" for item in tensors):
        return module
    return copy.deepcopy(module).cpu()


def moved(value: Any, device: str) -> Any:
    """Return a batch on a device: tensors, and those in lists, tuples and mappings."""
    if hasattr(value, "to") and callable(value.to):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(item, device) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(moved(item, device) for item in value)
    return value


def default_collate(samples: list[Any]) -> Any:
    """Stack samples as a torch DataLoader does."""
    from torch.utils.data import default_collate as stack

    return stack(samples)


def runner(module: Any, device: str, autocast: str | None) -> Callable[[Any], Any]:
    """Put a module on a device; return a function of a batch on the host."""
    torch = require_torch("a torch model")
    module = module.eval().to(device)
    dtype = None if autocast is None else getattr(torch, autocast)

    def run(batch: Any) -> Any:
        cast = torch.autocast(device, dtype=dtype) if dtype is not None else contextlib.nullcontext()
        with torch.inference_mode(), cast:
            return to_array(module(moved(batch, device)))

    return run


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Hold torch to one thread on the CPU, if it is in use: tasks run beside each other, and sums round by it."""
    global _running, _threads
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    with _lock:
        if _running == 0:
            _threads = torch.get_num_threads()
        _running += 1
    torch.set_num_threads(1)  # in every thread: OpenMP keeps a number for each
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if _running == 0:
                torch.set_num_threads(_threads)


def state_of(module: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name, type and shape, and the bytes, of all that a module has learnt."""
    import torch

    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            plain = value.detach().cpu().contiguous().flatten()
            yield f"{name} {value.dtype} {tuple(value.shape)}", plain.view(torch.uint8).numpy()
        else:
            yield f"{name} {value!r}", np.empty(0, np.uint8)
