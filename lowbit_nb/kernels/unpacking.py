"""Planar words to signed bytes inside a kernel: what a tensor core multiplies by the bytes of x.

A word holds one code of E = 32 / bits planes.  Four neighbouring words of a row are turned at once: `prmt` moves their bytes so
that a register holds the same byte of all four, then one `and` per plane leaves that plane's codes of the four words, a byte
each.  Nothing is shifted to the bottom of its byte except by 4; what is left stands `position` bits too high, and the plane's
inputs are divided by that power of two instead.  Eight bits lose 128 (their top bit is flipped), so that a byte is signed.

Three bits are their 2-bit words and their 1-bit words, put together before the product.  A twin in shifts and masks gives the
same bytes where there is no assembler.
"""

from __future__ import annotations

import triton
import triton.language as tl

# prmt selectors: two of these, then two of those, turn a 4 x 4 square of bytes
PAIRS = (("a", 0, 1, "0x5140"), ("b", 2, 3, "0x5140"), ("c", 0, 1, "0x7362"), ("d", 2, 3, "0x7362"))
SQUARE = (("a", "b", "0x5410"), ("a", "b", "0x7632"), ("c", "d", "0x5410"), ("c", "d", "0x7632"))


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


def _turn(words: list[str], out: list[str]) -> list[str]:
    """PTX that turns four words' bytes: out[b] holds byte b of each."""
    code = [f"prmt.b32 {name},{words[i]},{words[k]},{pick};" for name, i, k, pick in PAIRS]
    return code + [f"prmt.b32 {out[b]},{left},{right},{pick};" for b, (left, right, pick) in enumerate(SQUARE)]


def _ands(bits: int, byte: str, out: list[str]) -> list[str]:
    """PTX that leaves each plane of a turned register in its own; the upper half of a byte is shifted down by 4 first."""
    if bits == 8:
        return [f"xor.b32 {out[0]},{byte},0x80808080;"]
    code, half = [], len(out) // 2
    for i, name in enumerate(out):
        code += [f"shr.b32 {byte},{byte},4;"] if i == half else []
        code += [f"and.b32 {name},{byte},{((2**bits - 1) << (bits * (i % half))) * 0x01010101:#010x};"]
    return code


def assembly(bits: int) -> tuple[str, str]:
    """PTX and its constraints: four words (three bits: four of each of three tiles) in, a register for each plane out.

    Shapes:  two strings.
    Units:   none.
    Raises:  nothing.
    Source:  this project; a byte a code as in BitNet's GPU kernel, here from planar words.
    Differs: BitNet stores words whose bytes need no turning.
    """
    planes = 32 if bits == 3 else 32 // bits
    out, words = [f"${j}" for j in range(planes)], [f"${planes + i}" for i in range(12)]
    turned = [f"t{b}" for b in range(4)]
    code = [f".reg .b32 a,b,c,d,e,{','.join(turned)};"]
    for tile in range(2 if bits == 3 else 1):
        width = 2 if bits == 3 else bits
        code += _turn(words[4 * tile:], turned)
        per = 8 // width
        for b in range(4):
            at = 16 * tile + per * b
            code += _ands(width, turned[b], out[at:at + per])
    if bits == 3:  # plane j: bit j % 4 of a turned register's lower or upper half goes to bit 2 + position
        code += _turn(words[8:], turned)
        for j in range(32):
            byte, move = turned[j // 8], 2 + 2 * (j % 2) - j % 4
            code += [f"shr.b32 {byte},{byte},4;"] if j % 8 == 4 else []
            code += [f"{'shl' if move > 0 else 'shr'}.b32 e,{byte},{abs(move)};"] if move else []
            code += [f"lop3.b32 {out[j]},{'e' if move else byte},{(4 << (2 * (j % 2))) * 0x01010101:#010x},{out[j]},0xea;"]
    return "{" + " ".join(code) + "}", ",".join(["=&r"] * planes + ["r"] * (12 if bits == 3 else 4))


_P1, _P2, _P3, _P4, _P8 = (tl.constexpr(assembly(bits)[0]) for bits in (1, 2, 3, 4, 8))
_C1, _C2, _C3, _C4, _C8 = (tl.constexpr(assembly(bits)[1]) for bits in (1, 2, 3, 4, 8))


@triton.jit
def _plane(q, BITS: tl.constexpr, J: tl.constexpr, UP: tl.constexpr):
    return ((q >> (BITS * J)) & ((1 << BITS) - 1)) << UP


@triton.jit
def unpack(q, BITS: tl.constexpr, ASM: tl.constexpr):
    """A tile of words as 32 / BITS tiles of signed bytes; eight bits less 128, the others times 2**position.

    Shapes:  q [rows, 64] int32; returns 32 / BITS of [rows, 64] int8.
    Units:   codes.
    Raises:  nothing.
    Source:  this project; see `assembly`.
    Differs: ASM=False is the twin in shifts and masks.
    """
    if ASM:
        if BITS == 1:
            return tl.inline_asm_elementwise(_P1, _C1, [q], dtype=(tl.int8,) * 32, is_pure=True, pack=4)
        elif BITS == 2:
            return tl.inline_asm_elementwise(_P2, _C2, [q], dtype=(tl.int8,) * 16, is_pure=True, pack=4)
        elif BITS == 4:
            return tl.inline_asm_elementwise(_P4, _C4, [q], dtype=(tl.int8,) * 8, is_pure=True, pack=4)
        else:
            return tl.inline_asm_elementwise(_P8, _C8, [q], dtype=(tl.int8,) * 4, is_pure=True, pack=4)
    else:
        planes = ()
        for j in tl.static_range(32 // BITS):
            if BITS == 8:
                planes = planes + ((_plane(q, 8, j, 0) - 128).to(tl.int8),)
            else:
                planes = planes + (_plane(q, BITS, j, position(BITS, j)).to(tl.int8),)
        return planes


@triton.jit
def unpack3(low, next, high, ASM: tl.constexpr):
    """Two tiles of 2-bit words and the tile of 1-bit words above them, as 32 tiles of signed bytes, times 2**position.

    Shapes:  low, next, high [rows, 64] int32; returns 32 of [rows, 64] int8.
    Units:   codes.
    Raises:  nothing.
    Source:  this project; see `assembly`.
    Differs: ASM=False is the twin in shifts and masks.
    """
    if ASM:
        return tl.inline_asm_elementwise(_P3, _C3, [low, next, high], dtype=(tl.int8,) * 32, is_pure=True, pack=4)
    else:
        planes = ()
        for j in tl.static_range(16):
            planes = planes + ((_plane(low, 2, j, position(3, j)) | _plane(high, 1, j, 2 + position(3, j))).to(tl.int8),)
        for j in tl.static_range(16):
            planes = planes + ((_plane(next, 2, j, position(3, j)) | _plane(high, 1, 16 + j, 2 + position(3, j))).to(tl.int8),)
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
