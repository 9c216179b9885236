"""The native evaluator's seam: arrays that do not fit are refused before a word of them is read, and nothing is lost.

What is inside (programs from any bytes, the parsers) is fuzzed in C++ under the sanitizers: tests/test_native_fuzz.py.
"""

import numpy as np
import pytest

_native = pytest.importorskip("confide._native", reason="installed without a C++ compiler")
ckks = _native.ckks

DEGREE = 1024
PRIMES = (1125899906826241, 1099511592961)  # 1 modulo 2N, below 2^50
SPECIAL = 1125899906820097
COMPOSITE = 2049 * 4097  # 1 modulo 2N, and no prime
REFUSED = (ValueError, TypeError)
EVERY = 3  # the rotation that the key is for


def rows(*shape: int) -> np.ndarray:
    """Small numbers, below every prime."""
    return np.random.default_rng(0).integers(0, 1 << 30, (*shape, DEGREE), dtype=np.uint64)


CONTEXT = ckks.Context(DEGREE, PRIMES, SPECIAL)
OTHER = ckks.Context(DEGREE, PRIMES, SPECIAL)
CIPHER, KEY, PLAIN = rows(2, 2), rows(2, 2, 3), rows(2)


def wrong_arrays(right: np.ndarray) -> dict[str, object]:
    """Arrays that are like `right`, and are not."""
    padded = np.zeros((*right.shape[:-1], right.shape[-1] * 2), right.dtype)
    return {
        "signed": right.astype(np.int64),
        "narrow": right.astype(np.uint32),
        "floats": right.astype(np.float64),
        "objects": right.astype(object),
        "other byte order": right.astype(">u8"),
        "gaps": padded[..., ::2],
        "backwards": right[..., ::-1],
        "fortran": np.asfortranarray(right),
        "one row less": right[:-1],
        "short rows": np.ascontiguousarray(right[..., :-1]),
        "flat": right.ravel(),
        "a dimension more": right[None],
        "empty": right[:0],
        "nothing": None,
        "bytes": right.tobytes(),
        "list": right.tolist() if right.size < 5000 else [],
    }


WRONG = list(wrong_arrays(CIPHER))


def at_odd_places(right: np.ndarray) -> np.ndarray:
    """The same numbers, not aligned as the loops want them."""
    memory = np.zeros(right.size + 1, right.dtype)
    moved = memory[1:].reshape(right.shape)
    moved[:] = right
    return moved


def rotation():
    """A program that rotates and divides, and keys for it."""
    program, keys = ckks.Program(CONTEXT), ckks.ProgramKeys(CONTEXT)
    turned = program.rotate(program.input(2), 2, EVERY)
    program.finish([program.divide(turned, 2, 0)], [2])
    assert keys.load(EVERY, 2, KEY)
    return program, keys


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degree", "primes", "special"),
    [
        (0, PRIMES, SPECIAL),
        (1, PRIMES, SPECIAL),
        (1000, PRIMES, SPECIAL),
        (512, PRIMES, SPECIAL),
        (1 << 17, PRIMES, SPECIAL),
        (1 << 16, PRIMES, SPECIAL),
        (DEGREE, (), SPECIAL),
        (DEGREE, (0,), SPECIAL),
        (DEGREE, (1,), SPECIAL),
        (DEGREE, (2,), SPECIAL),
        (DEGREE, (PRIMES[0], PRIMES[0]), SPECIAL),
        (DEGREE, PRIMES, PRIMES[0]),
        (DEGREE, (COMPOSITE,), SPECIAL),
        (DEGREE, PRIMES, COMPOSITE),
        (DEGREE, ((1 << 61) + 1,), SPECIAL),
        (DEGREE, ((1 << 64) - 1,), SPECIAL),
        (DEGREE, (-1,), SPECIAL),
        (DEGREE, (1 << 64,), SPECIAL),
        (-1, PRIMES, SPECIAL),
    ],
)
def test_parameters_that_are_none(degree, primes, special):
    with pytest.raises(REFUSED):
        ckks.Context(degree, primes, special)


@pytest.mark.parametrize("path", ["sse2", "IFMA", "portable\0", "x" * 10000])
def test_unknown_instruction_sets(path):
    with pytest.raises(REFUSED):
        ckks.Context(DEGREE, PRIMES, SPECIAL, path)
    with pytest.raises(REFUSED):
        ckks.runs_here(path)


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", list(wrong_arrays(KEY)))
def test_keys_of_another_form(how):
    keys = ckks.ProgramKeys(CONTEXT)
    with pytest.raises(REFUSED):
        keys.load(EVERY, 2, wrong_arrays(KEY)[how])
    assert keys.bytes == 0


@pytest.mark.parametrize("limbs", [0, 3, 1 << 30, (1 << 64) - 1])
def test_keys_at_levels_that_are_not_there(limbs):
    with pytest.raises(REFUSED):
        ckks.ProgramKeys(CONTEXT).load(EVERY, limbs, KEY)


@pytest.mark.parametrize("place", [(0, 0, 0), (1, 1, 2), (0, 1, 1), (1, 0, 0)], ids=str)
def test_keys_beyond_their_primes(place):
    """Each digit, polynomial and prime, the special one too, first and last word."""
    for word in (0, DEGREE - 1):
        spoilt = KEY.copy()
        spoilt[*place, word] = (*PRIMES, SPECIAL)[place[2]]
        keys = ckks.ProgramKeys(CONTEXT)
        assert not keys.load(EVERY, 2, spoilt)
        assert keys.bytes == 0
        spoilt[*place, word] -= 1
        assert keys.load(EVERY, 2, spoilt)


def test_keys_are_complete_before_they_are_used():
    """A run reads them without any lock, so nothing is loaded from its beginning on, even where it fails."""
    program, keys = rotation()
    assert keys.load(EVERY, 2, KEY)  # until then a key may come again
    size = keys.bytes
    program.run(keys, [CIPHER], [np.zeros_like(CIPHER)], 1)
    for element in (EVERY, 9):
        with pytest.raises(ValueError, match="Expected all keys before the first run"):
            keys.load(element, 2, KEY)
    assert keys.bytes == size
    program.run(keys, [CIPHER], [np.zeros_like(CIPHER)], 1)
    none = ckks.ProgramKeys(CONTEXT)
    with pytest.raises(REFUSED):
        program.run(none, [CIPHER], [np.zeros_like(CIPHER)], 1)
    with pytest.raises(ValueError, match="Expected all keys before the first run"):
        none.load(EVERY, 2, KEY)


def test_a_key_of_the_evaluator_comes_once():
    keys = ckks.KeySet(CONTEXT)
    keys.add_relinearisation(KEY, 2)
    keys.add_galois(EVERY, KEY, 2)
    size = keys.bytes
    for again in (lambda: keys.add_relinearisation(KEY, 1), lambda: keys.add_galois(EVERY, KEY, 1)):
        with pytest.raises(ValueError, match="Expected each key once"):
            again()
    assert keys.bytes == size
    keys.add_galois(9, KEY, 2)
    assert keys.bytes > size


def test_keys_of_another_client_context_are_not_used():
    program, _ = rotation()
    foreign = ckks.ProgramKeys(OTHER)
    assert foreign.load(EVERY, 2, KEY)
    with pytest.raises(REFUSED):
        program.run(foreign, [CIPHER], [np.zeros_like(CIPHER)], 1)


def test_a_context_without_a_special_prime_takes_no_keys():
    bare = ckks.Context(DEGREE, PRIMES, 0)
    with pytest.raises(REFUSED):
        ckks.ProgramKeys(bare).load(EVERY, 2, KEY)
    program = ckks.Program(bare)
    with pytest.raises(REFUSED):
        program.rotate(program.input(2), 2, EVERY)


# --- running ----------------------------------------------------------------------------------------------------------


def test_the_control_a_right_question_is_answered_whatever_its_alignment():
    program, keys = rotation()
    out, odd = np.zeros_like(CIPHER), at_odd_places(np.zeros_like(CIPHER))
    program.run(keys, [CIPHER], [out], 1)
    program.run(keys, [at_odd_places(CIPHER)], [odd], 2)
    assert out.any()
    assert (odd == out).all()


@pytest.mark.parametrize("how", WRONG)
def test_questions_of_another_form(how):
    program, keys = rotation()
    with pytest.raises(REFUSED):
        program.run(keys, [wrong_arrays(CIPHER)[how]], [np.zeros_like(CIPHER)], 1)


@pytest.mark.parametrize("how", WRONG)
def test_room_for_replies_of_another_form(how):
    """A copy would be filled in its stead, and the reply lost."""
    program, keys = rotation()
    with pytest.raises(REFUSED):
        program.run(keys, [CIPHER], [wrong_arrays(np.zeros_like(CIPHER))[how]], 1)


@pytest.mark.parametrize("how", WRONG)
def test_several_questions_of_another_form(how):
    program, keys = rotation()
    questions = np.stack([CIPHER, CIPHER])
    out = np.zeros_like(questions)
    program.run_each(keys, [questions], [out], 2)
    assert out.any()
    for arguments in (
        ([wrong_arrays(questions)[how]], [out]),
        ([questions], [wrong_arrays(out)[how]]),
        ([], [out]),
        ([questions], []),
    ):
        with pytest.raises(REFUSED):
            program.run_each(keys, *arguments, 2)


def test_replies_are_not_written_where_nobody_may_write():
    program, keys = rotation()
    out = np.zeros_like(CIPHER)
    out.flags.writeable = False
    with pytest.raises(REFUSED):
        program.run(keys, [CIPHER], [out], 1)
    assert not out.any()


def test_other_counts_of_questions_and_replies():
    program, keys = rotation()
    out = np.zeros_like(CIPHER)
    for questions, replies in (([], [out]), ([CIPHER] * 2, [out]), ([CIPHER], []), ([CIPHER], [out, out])):
        with pytest.raises(REFUSED):
            program.run(keys, questions, replies, 1)


@pytest.mark.parametrize("polynomial", [0, 1])
@pytest.mark.parametrize("limb", [0, 1])
def test_questions_beyond_their_primes(polynomial, limb):
    """And the program is as good as before."""
    program, keys = rotation()
    out, expected = np.zeros_like(CIPHER), np.zeros_like(CIPHER)
    program.run(keys, [CIPHER], [expected], 1)
    for word in (0, DEGREE - 1):
        for value in (PRIMES[limb], (1 << 64) - 1):
            spoilt = CIPHER.copy()
            spoilt[polynomial, limb, word] = value
            with pytest.raises(REFUSED):
                program.run(keys, [spoilt], [out], 2)
            assert not out.any()
    program.run(keys, [CIPHER], [out], 2)
    assert (out == expected).all()


def test_keys_that_are_missing_or_too_small():
    program, _ = rotation()
    for element, limbs in ((EVERY, 1), (9, 2), (0, 2)):
        keys = ckks.ProgramKeys(CONTEXT)
        assert keys.load(element, limbs, KEY)
        with pytest.raises(REFUSED):
            program.run(keys, [CIPHER], [np.zeros_like(CIPHER)], 1)


def test_any_number_of_threads():
    program, keys = rotation()
    out = np.zeros_like(CIPHER)
    for threads in (0, 1000):
        program.run(keys, [CIPHER], [out], threads)
        assert out.any()
    for threads in (-1, 1 << 64):
        with pytest.raises(REFUSED):
            program.run(keys, [CIPHER], [out], threads)


def test_programs_that_are_not_finished_or_are():
    program = ckks.Program(CONTEXT)
    held = program.input(2)
    with pytest.raises(REFUSED):
        program.run(ckks.ProgramKeys(CONTEXT), [CIPHER], [], 1)
    with pytest.raises(REFUSED):
        program.finish([], [])
    program.finish([held], [2])
    for call in (
        lambda: program.finish([held], [2]),
        lambda: program.input(2),
        lambda: program.add(held, held, 2),
        lambda: program.plain(np.zeros(DEGREE, np.int64), 0, 2, False),
    ):
        with pytest.raises(REFUSED):
            call()


def test_a_baby_that_moves_nothing_is_its_parent():
    """Of a source, of such a baby again, and of one that moves: the same terms, so the same bits."""
    stream, found = np.random.default_rng(1), []
    numbers = stream.integers(-1000, 1000, (3, DEGREE))
    long = [(-1, 1), (0, 1), (1, EVERY), (-1, 9), (2, 1), (4, 9)], (2, 3, 5)
    short = [(-1, EVERY), (-1, 9), (0, 9)], (0, 1, 2)
    wrong = [(-1, EVERY), (-1, 9), (-1, 9)], (0, 1, 2)
    for babies, places in (long, short, wrong):
        program, keys = ckks.Program(CONTEXT), ckks.ProgramKeys(CONTEXT)
        held = program.input(2)
        plains = [program.plain(one, 0, 2, True) for one in numbers]
        summed = program.transform([held], 2, babies, [list(zip(places, plains, strict=True))], 1)
        program.finish([program.divide(summed, 2, 0)], [2])
        assert all(keys.load(element, 2, KEY) for element in (EVERY, 9))
        for threads in (1, 3):
            out = np.zeros_like(CIPHER)
            program.run(keys, [CIPHER], [out], threads)
            found.append(out.tobytes())
    assert len(set(found[:4])) == 1
    assert len(set(found)) == 2


@pytest.mark.parametrize("number", [1 << 31, (1 << 63) - 1, (1 << 64) - 1, -1])
def test_registers_plaintexts_and_levels_that_are_not_there(number):
    program = ckks.Program(CONTEXT)
    held, plain = program.input(2), program.plain(np.ones(DEGREE, np.int64), 0, 2, True)
    for call in (
        lambda: program.input(number),
        lambda: program.rotate(number, 2, EVERY),
        lambda: program.rotate(held, number, EVERY),
        lambda: program.rotate(held, 2, number),
        lambda: program.rotate(held, 2, 0),
        lambda: program.rotate(held, 2, 2),
        lambda: program.fold(held, 2, [[EVERY], [number]]),
        lambda: program.fold(held, 2, [[EVERY], []]),
        lambda: program.fold(held, 2, []),
        lambda: program.product(held, number, 2),
        lambda: program.divide(held, 2, number),
        lambda: program.divide(held, 2, 2),
        lambda: program.add_plain(held, 2, number),
        lambda: program.combine([held], 2, [number]),
        lambda: program.combine([held, held], 2, [plain]),
        lambda: program.transform([held], 2, [(-1, 1)], [[(number, plain)]], 1),
        lambda: program.transform([held], 2, [(-1, 1)], [[(0, number)]], 1),
        lambda: program.transform([held], 2, [(-1, 0)], [[(0, plain)]], 1),
        lambda: program.transform([held], 2, [(-1, 1)], [[(0, plain)], [(0, plain)]], 0),
        lambda: program.transform([held], 2, [(-2, 1)], [[(0, plain)]], 1),
        lambda: program.transform([held], 2, [(0, 1)], [[(0, plain)]], 1),
        lambda: program.transform([], 2, [], [[]], 1),
        lambda: program.plain(np.ones(DEGREE, np.int64), number, 2, True),
        lambda: program.plain(np.ones(DEGREE - 1, np.int64), 0, 2, True),
        lambda: program.plain(np.ones(DEGREE), 0, 2, True),
        lambda: program.finish([number], [2]),
        lambda: program.finish([held], [number]),
        lambda: program.finish([held], []),
    ):
        with pytest.raises(REFUSED):
            call()
    program.finish([held], [1])


# --- what strangers' bytes go through ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("primes", "rows_", "count"),
    [
        ((), 1, 4),
        ((PRIMES[0],), 0, 4),
        ((PRIMES[0],), 1, 0),
        ((PRIMES[0],), 1, 5),
        ((PRIMES[0],), 1, 1 << 31),
        ((PRIMES[0],), 1, (1 << 64) - 1),
        ((PRIMES[0],), 1 << 40, 4),
        ((PRIMES[0],), (1 << 64) - 1, 4),
        ((PRIMES[0],) * 300, 1, 4),
        ((0,), 1, 4),
        ((1,), 1, 4),
        (((1 << 64) - 1,), 1, 4),
        ((-5,), 1, 4),
    ],
)
def test_unpacking_knows_its_size_before_it_takes_memory(primes, rows_, count):
    body = np.zeros(25, np.uint8)  # four numbers of 50 bits
    assert ckks.unpack_residues(body, PRIMES[:1], 1, 4).tolist() == [[0] * 4]
    with pytest.raises(REFUSED):
        ckks.unpack_residues(body, primes, rows_, count)


def test_a_size_beyond_64_bits_is_not_taken_for_a_small_one():
    """2^23 rows of 2^31 residues in 8,192 bits together are 2^64 bytes, and that is not 0."""
    primes = [1 << 61] * 134 + [1 << 18]
    assert (1 << 23) * (1 << 31) * (134 * 61 + 18) // 8 == 1 << 64
    with pytest.raises(ValueError, match="Expected fewer residues"):
        ckks.unpack_residues(np.zeros(0, np.uint8), primes, 1 << 23, 1 << 31)


@pytest.mark.parametrize("body", [np.zeros(50, np.uint8)[::2], np.zeros(25, np.int8), np.zeros((1, 25), np.uint8), b""])
def test_unpacking_takes_bytes_side_by_side(body):
    with pytest.raises(REFUSED):
        ckks.unpack_residues(body, PRIMES[:1], 1, 4)


@pytest.mark.parametrize("how", [name for name in WRONG if name not in ("flat", "a dimension more")])
def test_products_take_residues_of_their_primes(how):
    products = ckks.Products(PRIMES, DEGREE)
    assert products.multiply(CIPHER, PLAIN) is not None
    assert (products.multiply(at_odd_places(CIPHER), at_odd_places(PLAIN)) == products.multiply(CIPHER, PLAIN)).all()
    for arguments in (
        (wrong_arrays(CIPHER)[how], PLAIN),
        (CIPHER, wrong_arrays(PLAIN)[how]),
        (CIPHER, PLAIN, wrong_arrays(CIPHER)[how] if how != "nothing" else 3),
    ):
        with pytest.raises(REFUSED):
            products.multiply(*arguments)


def whole() -> tuple:
    """A map of two ciphertexts to two, and what it reads and writes."""
    weights = np.array([[3.0, -5.0], [0.0, 7.0]])
    groups = [(np.arange(2, dtype=np.uint32), np.arange(2, dtype=np.uint32), weights)]
    residues, biases = rows(2, 2, 2), np.ones((2, 2), np.uint64)
    return ckks.IntegerMap(2, 2, groups), residues, biases, np.zeros_like(residues)


def test_sums_of_other_forms():
    sums, residues, biases, out = whole()
    sums.sums(residues, biases, PRIMES, out, 1)
    expected = out.copy()
    odd = at_odd_places(np.zeros_like(out))
    sums.sums(at_odd_places(residues), biases, PRIMES, odd, 2)
    assert (odd == expected).all()
    for how in WRONG:
        for arguments in (
            (wrong_arrays(residues)[how], biases, PRIMES, out),
            (residues, wrong_arrays(biases)[how], PRIMES, out),
            (residues, biases, PRIMES, wrong_arrays(out)[how]),
        ):
            with pytest.raises(REFUSED):
                sums.sums(*arguments, 1)
    for primes in ((), PRIMES[:1], (*PRIMES, SPECIAL), (0, 1)):
        with pytest.raises(REFUSED):
            sums.sums(residues, biases, primes, out, 1)


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [([0], [2], [[1.0]])],
        [([1], [0], [[1.0]])],
        [([0], [1 << 31], [[1.0]])],
        [([0], [0], [[0.5]])],
        [([0], [0], [[np.nan]])],
        [([0], [0], [[np.inf]])],
        [([0], [0], [[2.0**33]])],
        [([0], [0, 1], [[2.0**32, -(2.0**32)]])],
        [([0], [0], [[1.0, 2.0]])],
        [([0], [], np.zeros((1, 0)))],
        [([0], [0], [[1.0]]), ([0], [0], [[1.0]])],
    ],
)
def test_integer_maps_that_are_none(groups):
    made = [(np.array(o, np.uint32), np.array(i, np.uint32), np.array(w, np.float64)) for o, i, w in groups]
    with pytest.raises(REFUSED):
        ckks.IntegerMap(2, 1, made)
