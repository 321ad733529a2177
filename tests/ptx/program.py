"""Parser of PTX: entries with their parameters, variables and instructions."""

import re
from dataclasses import dataclass, field

WIDTHS = {"pred": 0, "b16": 2, "b32": 4, "f32": 4, "b64": 8, "f64": 8}  # bytes of a register
SPECIAL = ("%tid", "%ntid", "%ctaid", "%nctaid", "%laneid", "%warpid")


@dataclass(frozen=True)
class Register:
    """A register of a thread."""

    name: str
    bytes: int  # 0: a predicate


@dataclass(frozen=True)
class Special:
    """A special register: thread and block indices and counts."""

    name: str


@dataclass(frozen=True)
class Label:
    """Target of a branch."""

    name: str


@dataclass(frozen=True)
class Address:
    """A memory operand: [base + offset]."""

    base: "Register | int"
    offset: int


Vector = tuple["Operand", ...]
Operand = Register | Special | Label | Address | int | None | Vector  # None: `_`, discarded


@dataclass(frozen=True)
class Instruction:
    """One instruction, executed if its guard holds."""

    text: str
    name: str  # e.g. add
    modifiers: tuple[str, ...]  # e.g. rn, f32
    operands: Vector
    guard: Register | None = None
    unless: bool = False  # the guard is negated

    @property
    def type(self) -> str:
        """The last modifier: the type of the operation."""
        return self.modifiers[-1]


@dataclass
class Entry:
    """A kernel."""

    name: str
    parameters: list[tuple[int, int]] = field(default_factory=list)  # (offset, bytes) of each
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    threads: int = 0  # per block, if the entry declares it
    shared_bytes: int = 0  # of variables with a size
    dynamic: bool = False  # also has an unsized variable
    symbols: dict[str, int] = field(default_factory=dict)  # addresses
    registers: dict[str, int] = field(default_factory=dict)  # bytes, by prefix or name

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters together."""
        return sum(self.parameters[-1]) if self.parameters else 0

    def declare_parameter(self, text: str) -> None:
        """`.param .align 8 .b8 name[56]`, `.param .u64 .ptr .global .align 1 name`."""
        kind, name, count = _declared(text)
        align = re.match(r"\.param \.align (\d+)", text)  # not the alignment of a pointer's target
        size = _bytes(kind)
        step = int(align[1]) if align else size
        start = -(-self.parameter_bytes // step) * step
        self.parameters.append((start, size * (1 if count is None else count)))
        self.symbols[name] = start

    def declare_shared(self, text: str) -> None:
        """`.shared .align 16 .b8 name[4608]`; without a size it extends to the end."""
        kind, name, count = _declared(text)
        align = re.search(r"\.align (\d+)", text)
        step = int(align[1]) if align else 1
        start = -(-self.shared_bytes // step) * step
        self.symbols[name] = start
        if count == 0:
            self.dynamic = True
        else:
            self.shared_bytes = start + _bytes(kind) * (1 if count is None else count)

    def declare_registers(self, text: str) -> None:
        """`.reg .b32 %r<42>`, `.reg .b16 one, other`."""
        kind, names = re.findall(r"\.reg \.(\w+) (.+)", text)[0]
        for name in names.split(","):
            self.registers[name.strip().split("<")[0]] = WIDTHS[kind]

    def register(self, name: str) -> Register | None:
        """A declared register, or None."""
        size = self.registers.get(name, self.registers.get(name.rstrip("0123456789")))
        return None if size is None else Register(name, size)


def _declared(text: str) -> tuple[str, str, int | None]:
    """Type, name and count (0: unsized, None: no brackets) of a variable."""
    kind = re.search(r"\.([busf]\d+)\b", text)
    name = re.search(r"([\w$%]+)(?:\[(\d*)\])?$", text)
    assert kind and name, text
    return kind[1], name[1], None if name[2] is None else int(name[2] or 0)


def _bytes(kind: str) -> int:
    return int(kind[1:]) // 8


def _split(text: str) -> list[str]:
    """Split operands at commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "{[") - (letter in "}]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _number(text: str) -> int | None:
    """An integer, or the bits of a float."""
    if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", text):
        return int(text[2:], 16)
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
        return int(text.rstrip("U"), 0)
    return None


def _operand(text: str, entry: Entry) -> Operand:
    if text == "_":
        return None
    if text[0] in "{[":
        inside = text[1:-1].strip()
        if text[0] == "{":
            return tuple(_operand(part, entry) for part in _split(inside))
        base, _, offset = inside.partition("+")
        at = _operand(base.strip(), entry)
        assert isinstance(at, Register | int), text
        return Address(at, int(offset or 0))
    if "|" in text:
        return tuple(_operand(part.strip(), entry) for part in text.split("|"))
    number = _number(text)
    if number is not None:
        return number
    if text == "WARP_SZ":
        return 32
    if text.split(".")[0] in SPECIAL:
        return Special(text)
    register = entry.register(text)
    if register is not None:
        return register
    return entry.symbols[text] if text in entry.symbols else Label(text)


def _instruction(text: str, entry: Entry) -> Instruction:
    guard, unless, rest = None, False, text
    if text.startswith("@"):
        condition, rest = text.split(None, 1)
        unless = condition[1] == "!"
        guard = entry.register(condition.lstrip("@!"))
        assert guard is not None, text
    name, _, operands = rest.partition(" ")
    first, *modifiers = name.replace("::", "_").split(".")
    parsed = tuple(_operand(part, entry) for part in _split(operands))
    return Instruction(text, first, tuple(modifiers), parsed, guard, unless)


def entries(text: str) -> dict[str, Entry]:
    """The kernels of a PTX file, by name."""
    kernels: dict[str, Entry] = {}
    shared: list[str] = []  # variables of the file, visible to every entry
    entry: Entry | None = None
    for whole in text.splitlines():
        line = " ".join(whole.split("//")[0].split())
        started = re.search(r"\.entry ([\w$]+)", line)
        if started:
            entry = kernels[started[1]] = Entry(started[1])
            for declaration in shared:
                entry.declare_shared(declaration)
            line = line.partition("(")[2]
        if line.startswith(".section"):
            break  # debug information
        for statement in line.split(";"):
            _read(statement.strip().rstrip(",").strip(), entry, shared)
    return kernels


def _read(statement: str, entry: Entry | None, shared: list[str]) -> None:
    """Parse a statement of the file or of the current entry."""
    statement = statement.lstrip("{ ") if ".reg " in statement else statement
    if entry is None:
        if ".shared" in statement:
            shared.append(statement)
    elif statement.startswith(".param"):
        entry.declare_parameter(statement.rstrip(")"))
    elif statement.startswith(".shared"):
        entry.declare_shared(statement)
    elif statement.startswith(".reg "):
        entry.declare_registers(statement)
    elif re.match(r"\.(maxntid|reqntid)", statement):
        entry.threads = int(re.findall(r"\d+", statement)[0])
    elif re.fullmatch(r"[\w$]+:", statement):
        entry.labels[statement[:-1]] = len(entry.instructions)
    elif statement and statement[0] not in ".{})(":
        entry.instructions.append(_instruction(statement, entry))
