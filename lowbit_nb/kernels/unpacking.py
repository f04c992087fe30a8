"""Planar words to signed bytes inside a kernel: what a tensor core multiplies by the bytes of x.

A word holds one code of E = 32 / bits planes.  Four neighbouring words of a row are turned at once: `prmt` moves their bytes so
that a register holds the same byte of all four, then one `and` per plane leaves that plane's codes of the four words, a byte
each.  Nothing is shifted to the bottom of its byte except by 4; what is left stands `position` bits too high, and the plane's
inputs are divided by that power of two instead.  Eight bits lose 128 (their top bit is flipped), so that a byte is signed.

Half the planes come out at a time, so that few registers hold them.  Three bits are their 2-bit words and their 1-bit words,
put together before the product.  A twin in shifts and masks gives the same bytes where there is no assembler.
"""

from __future__ import annotations

import triton
import triton.language as tl

# prmt selectors that turn half of a 4 x 4 square of bytes: the lower two or the upper two bytes of four words
PAIRS = ("0x5140", "0x7362")
SQUARE = ("0x5410", "0x7632")


@triton.constexpr_function
def position(bits, plane):
    """By how many bits a plane's codes stand too high in their byte (bits 3: of the three-bit sum).

    Shapes:  two ints in, one int out.
    Units:   bits.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return 2 * (plane % 2) if bits == 3 else 0 if bits == 8 else bits * (plane % (4 // bits))


def _turn(words: list[str], half: int, out: list[str]) -> list[str]:
    """PTX that turns four words' bytes: out[b] holds byte 2 half + b of each."""
    code = [f"prmt.b32 {name},{words[i]},{words[i + 1]},{PAIRS[half]};" for name, i in (("a", 0), ("b", 2))]
    return code + [f"prmt.b32 {out[b]},a,b,{SQUARE[b]};" for b in range(2)]


def _ands(bits: int, byte: str, out: list[str]) -> list[str]:
    """PTX that leaves each plane of a turned register in its own; the upper half of a byte is shifted down by 4 first."""
    if bits == 8:
        return [f"xor.b32 {out[0]},{byte},0x80808080;"]
    code, half = [], len(out) // 2
    for i, name in enumerate(out):
        code += [f"shr.b32 {byte},{byte},4;"] if i == half else []
        code += [f"and.b32 {name},{byte},{((2**bits - 1) << (bits * (i % half))) * 0x01010101:#010x};"]
    return code


def assembly(bits: int, half: int) -> tuple[str, str]:
    """PTX and its constraints: four words in, a register for each plane of their lower or upper halves out.

    Three bits: four words of a tile of 2-bit words, all of whose planes come out, and four of the 1-bit tile above.

    Shapes:  two strings.
    Units:   none.
    Raises:  nothing.
    Source:  this project; a byte a code as in BitNet's GPU kernel, here from planar words.
    Differs: BitNet stores words whose bytes need no turning.
    """
    planes = 16 if bits in (1, 3) else 16 // bits
    out, words = [f"${j}" for j in range(planes)], [f"${planes + i}" for i in range(8)]
    turned, code = ["t0", "t1"], [".reg .b32 a,b,e,t0,t1;"]
    width = 2 if bits == 3 else bits
    for part in (0, 1) if bits == 3 else (half,):
        code += _turn(words, part, turned)
        for b in range(2):
            at = (2 * (part if bits == 3 else 0) + b) * (8 // width)
            code += _ands(width, turned[b], out[at:at + 8 // width])
    if bits == 3:  # plane j: bit j % 4 of a turned register's lower or upper half goes to bit 2 + position
        code += _turn(words[4:], half, turned)
        for j in range(16):
            byte, move = turned[j // 8], 2 + 2 * (j % 2) - j % 4
            code += [f"shr.b32 {byte},{byte},4;"] if j % 8 == 4 else []
            code += [f"{'shl' if move > 0 else 'shr'}.b32 e,{byte},{abs(move)};"] if move else []
            code += [f"lop3.b32 {out[j]},{'e' if move else byte},{(4 << (2 * (j % 2))) * 0x01010101:#010x},{out[j]},0xea;"]
    return "{" + " ".join(code) + "}", ",".join(["=&r"] * planes + ["r"] * (8 if bits == 3 else 4))


_CODE = {f"{bits} {half}": assembly(bits, half) for bits in (1, 2, 3, 4, 8) for half in (0, 1)}


@triton.constexpr_function
def _ptx(bits, half):
    return _CODE[f"{bits} {half}"][0]


@triton.constexpr_function
def _constraints(bits, half):
    return _CODE[f"{bits} {half}"][1]


@triton.constexpr_function
def _types(planes):
    return (tl.int8,) * planes


@triton.jit
def _plane(q, BITS: tl.constexpr, J: tl.constexpr, UP: tl.constexpr):
    return ((q >> (BITS * J)) & ((1 << BITS) - 1)) << UP


@triton.jit
def unpack(q, high, BITS: tl.constexpr, PART: tl.constexpr, ASM: tl.constexpr):
    """Half the planes of a slice as tiles of signed bytes; eight bits less 128, the others times 2**position.

    q     the slice's tile of words; three bits: the first or second tile of 2-bit words
    high  three bits only: the tile of 1-bit words above both
    PART  0: the first half of the planes, 1: the others

    Shapes:  q, high [rows, 64] int32; returns 16 / BITS (one and three bits: 16) of [rows, 64] int8.
    Units:   codes.
    Raises:  nothing.
    Source:  this project; see `assembly`.
    Differs: ASM=False is the twin in shifts and masks.
    """
    N: tl.constexpr = 16 if BITS == 3 else 16 // BITS
    if ASM:
        words = (q, high) if BITS == 3 else (q,)
        return tl.inline_asm_elementwise(_ptx(BITS, PART), _constraints(BITS, PART), words, dtype=_types(N), is_pure=True,
                                         pack=4)
    else:
        planes = ()
        for i in tl.static_range(N):
            if BITS == 8:
                planes = planes + ((_plane(q, 8, PART * N + i, 0) - 128).to(tl.int8),)
            elif BITS == 3:
                code = _plane(q, 2, i, position(3, i)) | _plane(high, 1, PART * N + i, 2 + position(3, i))
                planes = planes + (code.to(tl.int8),)
            else:
                planes = planes + (_plane(q, BITS, PART * N + i, position(BITS, i)).to(tl.int8),)
        return planes


@triton.jit
def ask(at):
    """Have the lines at these addresses brought to the second-level cache; nothing waits.

    Shapes:  a tile of pointers.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    tl.inline_asm_elementwise("{ prefetch.global.L2 [$1]; mov.b32 $0, 0; }", "=r,l", [at.to(tl.int64)], dtype=tl.int32,
                              is_pure=False, pack=1)
