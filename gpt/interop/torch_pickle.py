"""The pickles in files of `torch.save`, read as data: nothing in them is run.

A pickle is a program. Python's unpickler runs it, and even one that knows few names can be kept busy without end: forty
tuples, each of the one before it twice, take a hundred bytes, and 2^40 steps to hash. Here `pickletools` tells the
instructions apart, and the few that describe tensors build plain values in one pass.
"""

import io
import pickletools
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

BFLOAT16 = np.dtype(jnp.bfloat16)  # which NumPy by itself does not have

_STORAGES = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": BFLOAT16,
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}
_DICT = "collections.OrderedDict"
_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER = "torch._utils._rebuild_parameter"
_KNOWN = {_DICT, *_TENSORS, _PARAMETER, *_STORAGES}
MAX_AXES = 64
"""Of an array of NumPy."""


class Refused(Exception):
    """The file asks for something that a tensor file does not need."""


class Storage(NamedTuple):
    """A run of values in the file, by its key."""

    key: str
    dtype: np.dtype
    length: int


class Tensor(NamedTuple):
    """A view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Name(NamedTuple):
    """What the pickle would call."""

    text: str


def read_pickle(stream: io.BufferedIOBase) -> Any:
    """The value of one pickle: dicts, lists, tuples, text, numbers, and descriptions of tensors; the rest is unread.

    Raises:
      Refused: it asks for a name or an instruction that tensors do not need.
      Exception: it is damaged, in whatever way.
    """
    machine = _Machine()
    for instruction, argument, _ in pickletools.genops(stream):  # pyright: ignore[reportArgumentType] - of bytes
        if instruction.name == "STOP":
            return machine.stack.pop()
        machine.follow(instruction.name, argument)
    raise ValueError("a pickle without end")


class _Machine:
    """What the instructions read so far have built."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def follow(self, instruction: str, argument: Any) -> None:
        """Does what one instruction says."""
        push, pop = self.stack.append, self.stack.pop
        match instruction:
            case "PROTO" | "FRAME":
                pass
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "NONE":
                push(argument)
            case "NEWTRUE" | "NEWFALSE":
                push(instruction == "NEWTRUE")
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                push({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[instruction]())
            case "MARK":
                self._marks.append(len(self.stack))
            case "TUPLE":
                push(tuple(self._items()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple([pop() for _ in range(int(instruction[-1]))][::-1]))
            case "SETITEM":
                value, key = pop(), pop()
                _set_items(self.stack[-1], [key, value])
            case "SETITEMS":
                items = self._items()
                _set_items(self.stack[-1], items)
            case "APPEND":
                item = pop()
                self._list().append(item)
            case "APPENDS":
                items = self._items()
                self._list().extend(items)
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "GLOBAL":
                push(_known(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                push(_known(f"{module:.80}.{name:.80}"))
            case "BINPERSID":
                push(_storage(*pop()))
            case "REDUCE":
                arguments = pop()
                push(_called(pop(), *arguments))
            case "BUILD":
                pop()  # what torch attaches to a dict: the versions of modules
                if not isinstance(self.stack[-1], dict):
                    raise Refused("its pickle sets the state of something that has none")
            case _:
                raise Refused(f"its pickle has the instruction {instruction}, which no tensor needs")

    def _items(self) -> list[Any]:
        """What lies above the last mark."""
        mark = self._marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise TypeError(f"items for a {type(self.stack[-1]).__name__}")
        return self.stack[-1]


def _set_items(tree: Any, items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in keys):
        raise Refused("it holds a dict whose keys are no text")
    tree.update(zip(keys, values, strict=True))


def _known(name: str) -> _Name:
    if name not in _KNOWN:
        raise Refused(f"its pickle asks for {name!r:.200}, which no tensor needs")
    return _Name(name)


def _called(name: Any, *arguments: Any) -> Any:
    """What a call of a known name would give, as a description."""
    match name, arguments:
        case _Name(text), (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) if text in _TENSORS:
            if max(len(shape), len(strides)) > MAX_AXES or not all(type(n) is int for n in (*shape, *strides)):
                raise TypeError("a tensor whose shape is none")
            return Tensor(storage, offset, shape, strides)
        case _Name(text), (Tensor() as tensor, *_) if text == _PARAMETER:
            return tensor
        case _Name(text="collections.OrderedDict"), ():
            return {}
        case _Name(text="collections.OrderedDict"), (list(pairs),):
            tree: dict[str, Any] = {}
            for pair in pairs:
                _set_items(tree, list(pair))
            return tree
    raise TypeError("a call that rebuilds no tensor")


def _storage(kind: Any, storage_type: Any, key: Any, _device: Any, length: Any, *view: Any) -> Storage:
    if kind != "storage" or any(part is not None for part in view):
        raise Refused("it holds something else than plain storages; save it again with a current torch")
    if not isinstance(storage_type, _Name) or not isinstance(key, str) or type(length) is not int:
        raise TypeError("a storage without type, key or length")
    return Storage(key, _STORAGES[storage_type.text], length)
