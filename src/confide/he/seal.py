"""Microsoft SEAL behind types that say who may hold what: the only file that touches the package `seal`.

`SecretKey` and `PublicKeys` are two types, and nothing makes public keys but `Context.generate`. Bytes of strangers
are numbers alone (`packed`), checked before SEAL sees them, so a hostile body is a `ProtocolError`.
`invariant_noise_budget`, which depends on the secret key, is not offered.

SEAL draws its own randomness from the operating system; it cannot be seeded from here.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import msgspec
import numpy as np
import seal
from numpy.typing import NDArray

from confide.errors import ProtocolError
from confide.he.ahead import MOST_AHEAD, Stock
from confide.he.compiled import NATIVE
from confide.he.packed import pack, pack_ciphertext, pack_key_set, unpack_ciphertext, unpack_key_set
from confide.he.packing import imaginary
from confide.he.parameters import Parameters
from confide.he.seal_format import (
    Form,
    Residues,
    aligned,
    check_residues,
    limbs_of,
    parms_id_bytes,
    read_ciphertext,
    read_plaintext,
    read_words,
    write_ciphertext,
    write_plaintext,
    write_words,
)
from confide.he.traces import traced

if TYPE_CHECKING:
    from confide._native import ckks

#: The "rotation" that conjugates every slot, by SEAL's convention.
CONJUGATION = 0

_REFUSED = (RuntimeError, ValueError, TypeError)  # how SEAL says no


@contextmanager
def refusing_transparent() -> Generator[None]:
    """Turn SEAL's refusal of results whose second half is zero into ProtocolError: only a forged query leads there."""
    try:
        yield
    except RuntimeError:
        raise ProtocolError("Expected encryptions, not numbers in the clear") from None


def ntt_primes(degree: int, bits: Sequence[int]) -> tuple[int, ...]:
    """Return different primes of these sizes, each 1 modulo 2 * degree: always the same ones."""
    return tuple(prime.value() for prime in seal.CoeffModulus.Create(degree, list(bits)))


class Ciphertext:
    """An encryption; whoever holds it learns its size."""

    __slots__ = ("value",)

    def __init__(self, value: seal.Ciphertext) -> None:
        self.value = value


class Plaintext:
    """An encoded polynomial: weights, or a decrypted value. It has no repr."""

    __slots__ = ("value",)

    def __init__(self, value: seal.Plaintext) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Plaintext()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a plaintext is not pickled")


class SecretKey:
    """The client's secret: bytes for its owner's store, no repr, no way into a message.

    Args:
        context: the parameters it belongs to.
        value: SEAL's key.
    """

    __slots__ = ("_ahead", "_context", "_decryptor", "_encryptor", "_value")

    def __init__(self, context: Context, value: seal.SecretKey) -> None:
        self._value = value
        self._context = context
        self._ahead: Stock[int, tuple[seal.Ciphertext, bytes]] = Stock(self._fresh_zero)
        self._encryptor = seal.Encryptor(context.seal, value)
        self._decryptor = seal.Decryptor(context.seal, value)

    def __repr__(self) -> str:
        return "SecretKey()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is not pickled")

    def to_bytes(self) -> bytes:
        """Return the key for the store of its owner."""
        return self._value.to_string()

    def encrypt(self, plain: Plaintext) -> Ciphertext:
        """Return a fresh encryption: under CKKS at the level of `plain`, under BFV at the top."""
        return Ciphertext(self._encryptor.encrypt_symmetric(plain.value))

    def encrypt_packed(self, plain: Plaintext) -> bytes:
        """Return a fresh BFV encryption in NTT form, packed; all of it but `plain` may have been made ahead.

        It is what `encrypt` gives: SEAL adds the scaled plaintext to an encryption of zero, too.
        """
        context, limbs = self._context, len(self._context.parameters.data_primes)
        zero, second = self._ahead.take(limbs)
        context.evaluator.add_plain_inplace(zero, plain.value)
        return context.packed_polynomial(Ciphertext(zero), 0) + second

    def _fresh_zero(self, limbs: int) -> tuple[seal.Ciphertext, bytes]:
        """Return an encryption of zero in coefficient form, and its second polynomial, which no plaintext changes."""
        zero = self._encryptor.encrypt_symmetric(seal.Plaintext())
        return zero, self._context.packed_polynomial(Ciphertext(zero), 1)

    def prepare_ahead(self) -> bool:
        """Do the part of an encryption that needs no plaintext. Returns False if there is enough of it."""
        return self._ahead.prepare()

    def decrypt(self, cipher: Ciphertext) -> Plaintext:
        """Return what `cipher` holds; a CKKS result includes its noise, so it stays with the owner of the key."""
        return Plaintext(self._decryptor.decrypt(cipher.value))


class PublicKeys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client uploads: nothing in it helps to decrypt. A part that the plan does not need is empty.

    Args:
        nonce: 16 random bytes, so that two clients never share a key id.
        encryption: the public key, for fresh encryptions of zero.
        relinearisation: one key-switching key, for squares.
        rotation: one key-switching key per rotation step, by SEAL's position.

    The last three are packed (`packed`).
    """

    nonce: bytes
    encryption: bytes = b""
    relinearisation: bytes = b""
    rotation: bytes = b""


class Needs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which public keys a plan needs, and no others are taken.

    Args:
        encryption: a public key, for fresh encryptions of zero.
        relinearisation: a key for squares.
        steps: rotations, in slots to the left, all different; `CONJUGATION` is one.
        limbs: the most data primes that each of them is used at: no more of its key is made up for upload. Empty where
            every key is used at all of them.
    """

    encryption: bool = False
    relinearisation: bool = False
    steps: tuple[int, ...] = ()
    limbs: tuple[int, ...] = ()

    def levels(self, limbs: int) -> dict[int, int]:
        """Return for each step the primes that its key is used at, of `limbs` data primes."""
        return dict(zip(self.steps, self.limbs or (limbs,) * len(self.steps), strict=True))


class Evaluation:
    """A client's public keys as the server uses them, checked.

    Args:
        context: the parameters.
        keys: a stranger's.
        needs: the plan's.

    Raises:
        ProtocolError: a part is missing, superfluous or malformed.
    """

    def __init__(self, context: Context, keys: PublicKeys, needs: Needs) -> None:
        present = (bool(keys.encryption), bool(keys.relinearisation), bool(keys.rotation))
        if len(keys.nonce) != 16 or present != (needs.encryption, needs.relinearisation, bool(needs.steps)):
            raise ProtocolError("Expected the public keys that this plan needs, and no others")
        self._context = context
        self._needs = needs
        self._ahead: Stock[int | Form, Any] = Stock(self._fresh_zero)
        form, digits = context.key_form, len(context.parameters.data_primes)
        try:
            if needs.encryption:
                body = unpack_ciphertext(keys.encryption, form)
                self._zeros = seal.Encryptor(context.seal, context.seal.from_public_str(_text(body)))
            if needs.relinearisation:
                body = unpack_key_set(keys.relinearisation, form, digits=digits, levels={0: digits})
                self._relinearisation = context.seal.from_relin_str(_text(body))
            if needs.steps:
                body = unpack_key_set(keys.rotation, form, digits=digits, levels=context.galois_levels(needs))
                self._rotation = context.seal.from_galois_str(_text(body))
        except _REFUSED:
            raise ProtocolError("Expected public keys that SEAL takes") from None

    def encrypt(self, plain: Plaintext) -> Ciphertext:
        """Return a fresh encryption under the client's key, at the top level."""
        return Ciphertext(self._zeros.encrypt(plain.value))

    def zero(self, *, limbs: int, scale: float = 1.0) -> Ciphertext:
        """Return a fresh encryption of zero under the client's key, made now or ahead; no other call gets the same."""
        cipher = self._ahead.take(limbs)
        cipher.scale(scale)
        return Ciphertext(cipher)

    def zero_residues(self, form: Form) -> Residues:
        """Return the numbers of a fresh encryption of zero, likewise, shape `form.shape`."""
        return self._ahead.take(form)

    def _fresh_zero(self, form: int | Form) -> seal.Ciphertext | Residues:
        if isinstance(form, int):
            return self._zeros.encrypt_zero(self._context.parms_id(form))
        zero = Ciphertext(self._zeros.encrypt_zero(self._context.parms_id(len(form.primes))))
        return aligned(self._context.residues(zero, form))

    def prepare_ahead(self) -> bool:
        """Make an encryption of zero for a later reply. Returns False if there are enough of them."""
        return self._ahead.prepare()

    @property
    def memory_bytes(self) -> int:
        """Return the memory of the keys, in words of 64 bits: SEAL holds each at all primes, used or not."""
        whole = self._context.key_form.size_bytes
        switching = len(self._needs.steps) + self._needs.relinearisation
        return whole * (switching * len(self._context.parameters.data_primes) + self._needs.encryption)

    @property
    def ahead_bytes(self) -> int:
        """Return a bound of the memory that encryptions of zero take before they are used."""
        parameters = self._context.parameters
        return MOST_AHEAD * 16 * parameters.degree * len(parameters.data_primes)

    def relinearise(self, cipher: Ciphertext) -> None:
        """Bring a square back to two polynomials, in place."""
        self._context.evaluator.relinearize_inplace(cipher.value, self._relinearisation)

    def rotate(self, cipher: Ciphertext, step: int) -> Ciphertext:
        """Return `cipher` with slot i + step in slot i."""
        return Ciphertext(self._context.evaluator.rotate_vector(cipher.value, step, self._rotation))

    def conjugate(self, cipher: Ciphertext) -> Ciphertext:
        """Return `cipher` with the complex conjugate of each slot."""
        return Ciphertext(self._context.evaluator.complex_conjugate(cipher.value, self._rotation))


class Context:
    """SEAL's tables for one set of parameters, and the operations that need no key.

    Building one takes milliseconds, so kits keep theirs.

    Raises:
        ProtocolError: parameters below 128 bits of security, or that SEAL refuses.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters.checked()
        made = seal.EncryptionParameters(getattr(seal.scheme_type, parameters.scheme))
        level: Any = seal.sec_level_type.tc128
        try:
            made.set_poly_modulus_degree(parameters.degree)
            made.set_coeff_modulus([seal.Modulus(prime) for prime in parameters.primes])
            if parameters.plain_modulus:
                made.set_plain_modulus(parameters.plain_modulus)
            self.seal = seal.SEALContext(made, True, level)
        except _REFUSED:
            raise ProtocolError("Expected encryption parameters that SEAL takes") from None
        if not self.seal.parameters_set():
            raise ProtocolError(f"Expected encryption parameters that SEAL takes: {self.seal.parameter_error_name()}")
        self.evaluator = seal.Evaluator(self.seal)
        self._encoder = seal.CKKSEncoder(self.seal) if parameters.scheme == "ckks" else None
        self._ids = _chain(self.seal)
        self._units: dict[int, Plaintext] = {}
        key_id = parms_id_bytes(self.seal.key_context_data().parms_id())
        self.key_form = Form(key_id, parameters.degree, parameters.primes, ntt=True)

    @cached_property
    def products(self) -> ckks.Products | None:
        """Return the compiled transforms modulo the data primes, None where there are none."""
        return NATIVE.Products(self.parameters.data_primes, self.parameters.degree) if NATIVE else None

    def parms_id(self, limbs: int) -> list[int]:
        """Return SEAL's name for the level with `limbs` primes."""
        return self._ids[limbs]

    def form(self, *, limbs: int, ntt: bool, scale: float = 1.0) -> Form:
        """Return the form of a ciphertext at the level with `limbs` primes."""
        parameters = self.parameters
        parms_id = parms_id_bytes(self._ids[limbs])
        return Form(parms_id, parameters.degree, parameters.data_primes[:limbs], ntt, scale)

    # --- keys ---------------------------------------------------------------------------------------------------------

    def generate(self, nonce: bytes, needs: Needs) -> tuple[SecretKey, PublicKeys]:
        """Return a fresh secret key, and the public keys of it that a plan needs.

        SEAL makes keys for all data primes; each rotation's is made and packed by itself, so memory is that of one.

        Args:
            nonce: 16 random bytes.
            needs: which public keys to make.
        """
        maker = seal.KeyGenerator(self.seal)
        form, digits = self.key_form, len(self.parameters.data_primes)
        encryption = relinearisation = rotation = b""
        if needs.encryption:
            encryption = pack_ciphertext(maker.create_public_key().to_string(), form)
        if needs.relinearisation:
            body = maker.create_relin_keys().to_string()
            relinearisation = pack_key_set(body, form, digits=digits, levels={0: digits})
        levels = needs.levels(digits)
        for step in sorted(levels, key=self.galois_index):  # in the order of positions, as in a set of all of them
            made = seal.GaloisKeys()
            maker.create_galois_keys([step], made)
            own = {self.galois_index(step): levels[step]}
            rotation += pack_key_set(made.to_string(), form, digits=digits, levels=own)
        public = PublicKeys(nonce=nonce, encryption=encryption, relinearisation=relinearisation, rotation=rotation)
        return SecretKey(self, maker.secret_key()), public

    def secret(self, body: bytes) -> SecretKey:
        """Return the key that `SecretKey.to_bytes` wrote into its owner's store."""
        try:
            return SecretKey(self, self.seal.from_secret_str(_text(body)))
        except _REFUSED:
            raise ProtocolError("Expected a secret key of these parameters in the store; set up again") from None

    def galois_index(self, step: int) -> int:
        """Return where SEAL stores the key of the rotation by `step` slots to the left, or of the conjugation."""
        degree = self.parameters.degree
        return degree - 1 if step == CONJUGATION else (pow(3, step, 2 * degree) - 1) // 2

    def galois_levels(self, needs: Needs) -> dict[int, int]:
        """Return the primes at which each rotation's key is used, by its position."""
        levels = needs.levels(len(self.parameters.data_primes))
        return {self.galois_index(step): limbs for step, limbs in levels.items()}

    # --- ciphertexts and bytes ----------------------------------------------------------------------------------------

    def load(self, body: bytes, form: Form) -> Ciphertext:
        """Return the ciphertext in `body`, a stranger's.

        Raises:
            ProtocolError: `body` is not a ciphertext of this form.
        """
        whole = unpack_ciphertext(body, form)
        try:
            return Ciphertext(self.seal.from_cipher_str(_text(whole)))
        except _REFUSED:
            raise ProtocolError("Expected a ciphertext of these parameters") from None

    def expanded(self, body: bytes, kind: Literal["cipher", "public", "relin", "galois"]) -> bytes:
        """Return an object of SEAL's own form, a stranger's that was checked: no seeds, ciphertexts in NTT form.

        Raises:
            ProtocolError: SEAL does not take it.
        """
        try:
            made = getattr(self.seal, f"from_{kind}_str")(_text(body))
            if kind == "cipher" and not made.is_ntt_form():
                self.evaluator.transform_to_ntt_inplace(made)
        except _REFUSED:
            raise ProtocolError("Expected an object that SEAL takes") from None
        return made.to_string()

    def to_bytes(self, cipher: Ciphertext) -> bytes:
        """Return the numbers of a ciphertext, packed: their length depends on its level alone."""
        body = cipher.value.to_string()
        limbs, ntt, scale = limbs_of(body), cipher.value.is_ntt_form(), cipher.value.scale()
        return pack_ciphertext(body, self.form(limbs=limbs, ntt=ntt, scale=scale))

    def packed_polynomial(self, cipher: Ciphertext, place: int) -> bytes:
        """Return one polynomial of a ciphertext at the top level in coefficient form, in NTT form and packed."""
        primes = self.parameters.data_primes
        if self.products is None:
            cipher = Ciphertext(self.evaluator.transform_to_ntt(cipher.value))
            return pack(self.residues(cipher, self.form(limbs=len(primes), ntt=True))[place], primes)
        return pack(
            self.products.forward(self.residues(cipher, self.form(limbs=len(primes), ntt=False))[place]), primes
        )

    def residues(self, cipher: Ciphertext, form: Form) -> Residues:
        """Return the numbers of a ciphertext, read-only, shape `form.shape`."""
        return read_ciphertext(cipher.value.to_string(), form)

    def from_residues(self, residues: Residues, form: Form) -> Ciphertext:
        """Return the ciphertext with these numbers, a stranger's, shape `form.shape`.

        Raises:
            ProtocolError: a number is not below its prime.
        """
        check_residues(residues, form.primes)
        return Ciphertext(self.seal.from_cipher_str(_text(write_ciphertext(residues, form))))

    # --- encoding -----------------------------------------------------------------------------------------------------

    def polynomial(self, coefficients: Residues) -> Plaintext:
        """Return the BFV plaintext with these coefficients, each in [0, t), shape (N,)."""
        plain = seal.Plaintext()
        plain.load_bytes(self.seal, write_plaintext(coefficients))
        return Plaintext(plain)

    def coefficients(self, plain: Plaintext) -> Residues:
        """Return the coefficients of a BFV plaintext, each in [0, t), shape (N,)."""
        return read_plaintext(plain.value.to_bytes(), self.parameters.degree)

    def encode(
        self, slots: NDArray[np.float64] | NDArray[np.complex128] | float, *, limbs: int, scale: float
    ) -> Plaintext:
        """Return the CKKS plaintext with these slots, shape (N/2,), or one number in all, at `limbs` primes."""
        assert self._encoder is not None
        if isinstance(slots, float):
            plain = self._encoder.encode(slots, scale)
        elif np.iscomplexobj(slots):
            plain = self._encoder.encode_complex(np.ascontiguousarray(slots, np.complex128), scale)
        else:
            plain = self._encoder.encode(np.ascontiguousarray(slots, np.float64), scale)
        self.evaluator.mod_switch_to_inplace(plain, self._ids[limbs])
        return Plaintext(plain)

    def is_nonzero(self, plain: Plaintext) -> bool:
        """Return whether a plaintext holds anything."""
        return not plain.value.is_zero()

    def decode(self, plain: Plaintext) -> NDArray[np.float64]:
        """Return the slots of a CKKS plaintext, shape (N/2,)."""
        assert self._encoder is not None
        return self._encoder.decode(plain.value)

    def decode_traced(self, plain: Plaintext, form: Form, period: int) -> NDArray[np.float64]:
        """Return the real parts of a CKKS plaintext's slots, averaged over copies, shape (period,) (`traces`).

        Args:
            plain: what was decrypted.
            form: of its ciphertext, in NTT form.
            period: of the copies.
        """
        words = traced(read_words(plain.value.to_bytes(), form), form.primes, period)
        made = seal.Plaintext()
        made.load_bytes(self.seal, write_words(words, replace(form, scale=2 * form.scale)))
        return self.decode(Plaintext(made))[:period]

    # --- arithmetic without keys --------------------------------------------------------------------------------------

    def plain_to_ntt(self, plain: Plaintext, *, limbs: int) -> Plaintext:
        """Return a BFV plaintext in NTT form, for products with ciphertexts in NTT form."""
        return Plaintext(self.evaluator.transform_to_ntt(plain.value, self._ids[limbs]))

    def to_ntt(self, cipher: Ciphertext) -> None:
        """Bring a BFV ciphertext into NTT form, in place."""
        self.evaluator.transform_to_ntt_inplace(cipher.value)

    def from_ntt(self, cipher: Ciphertext) -> None:
        """Bring a BFV ciphertext into coefficient form, in place."""
        self.evaluator.transform_from_ntt_inplace(cipher.value)

    def times_plain(self, cipher: Ciphertext, plain: Plaintext) -> Ciphertext:
        """Return the product with a plaintext that is not zero."""
        return Ciphertext(self.evaluator.multiply_plain(cipher.value, plain.value))

    def add(self, cipher: Ciphertext, other: Ciphertext) -> None:
        """Add `other` to `cipher`, in place."""
        self.evaluator.add_inplace(cipher.value, other.value)

    def plus(self, cipher: Ciphertext, other: Ciphertext) -> Ciphertext:
        """Return the sum of two ciphertexts."""
        return Ciphertext(self.evaluator.add(cipher.value, other.value))

    def add_plain(self, cipher: Ciphertext, plain: Plaintext) -> None:
        """Add `plain` to `cipher`, in place."""
        self.evaluator.add_plain_inplace(cipher.value, plain.value)

    def plus_plain(self, cipher: Ciphertext, plain: Plaintext) -> Ciphertext:
        """Return the sum with a plaintext."""
        return Ciphertext(self.evaluator.add_plain(cipher.value, plain.value))

    def times_imaginary(self, cipher: Ciphertext) -> Ciphertext:
        """Return the product with X^(N/2), which is i or -i in each slot (`packing.imaginary`): exact, at its scale."""
        limbs = cipher.value.coeff_modulus_size()
        if limbs not in self._units:
            units = imaginary(self.parameters.degree // 2)
            self._units[limbs] = self.encode(units, limbs=limbs, scale=1.0)
        return self.times_plain(cipher, self._units[limbs])

    def times(self, cipher: Ciphertext, other: Ciphertext) -> Ciphertext:
        """Return the product of two, three polynomials until it is relinearised."""
        if cipher is other:
            return Ciphertext(self.evaluator.square(cipher.value))
        return Ciphertext(self.evaluator.multiply(cipher.value, other.value))

    def switch(self, cipher: Ciphertext, *, limbs: int) -> Ciphertext:
        """Return `cipher` at the level with `limbs` primes, itself if it is there already; its scale stays."""
        if cipher.value.parms_id() == self._ids[limbs]:
            return cipher
        return Ciphertext(self.evaluator.mod_switch_to(cipher.value, self._ids[limbs]))

    def rescale(self, cipher: Ciphertext, *, scale: float) -> None:
        """Divide by the last prime and drop it, in place; `scale` is the scale that this leaves."""
        self.evaluator.rescale_to_next_inplace(cipher.value)
        cipher.value.scale(scale)


def _chain(context: seal.SEALContext) -> dict[int, list[int]]:
    """Return SEAL's names of the levels by their number of primes."""
    ids: dict[int, list[int]] = {}
    data: Any = context.first_context_data()
    while data is not None:
        ids[len(data.parms().coeff_modulus())] = list(data.parms_id())
        data = data.next_context_data()
    return ids


def _text(body: bytes) -> Any:
    return body  # the binding's stubs call its byte strings "str"
