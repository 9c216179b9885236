"""Models as programs in C++ (`native/ckks`): made once from the plan, executed whole without the interpreter lock.

No secret comes here: a program holds encoded weights and works on ciphertexts and public evaluation keys. Fresh
encryptions of zero, which need randomness, come from Microsoft SEAL.

`CONFIDE_NATIVE=0` switches this off; so does installing without a C++ compiler. Everything runs on SEAL then, slower.
`CONFIDE_THREADS` says how many threads one answer may take, whatever the server was told.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from confide.crypto.random import Randomness
from confide.errors import ProtocolError, UsageError
from confide.he.arithmetic import Computation, Shape
from confide.he.machines import Keys, Machine, SealMachine, flooding_slots, shown
from confide.he.packed import key_set_bytes, packed_bytes, unpack, unpack_keys, whole_key
from confide.he.parameters import Parameters
from confide.he.recorder import Recorder, galois_element
from confide.he.seal import Ciphertext, Context, Evaluation, Needs, PublicKeys
from confide.he.seal_format import Residues
from confide.he.slots import coefficients
from confide.he.speeds import Executor

try:
    import confide._native as _native
except ImportError:
    _native = None

#: Most threads of one answer.
MOST_THREADS = 64

#: What executes plans: "native" is this module, "seal" Microsoft SEAL; "auto" takes the first that is here.
Engine = Literal["auto", "native", "seal"]


class NativeUnavailable(UserWarning):
    """Encrypted inference runs several times slower than it could, since the native evaluator is not here."""


def available() -> bool:
    """Return whether programs can be executed: the extension is here, and not switched off.

    Raises:
        UsageError: `CONFIDE_NATIVE_PATH` names no path, or one that this machine cannot run.
    """
    if _native is None or _native.ckks.switched_off():
        return False
    try:
        return _native.ckks.runs_here("")  # of the path that the environment names, else of the best
    except ValueError as error:
        raise UsageError(f"{error}; unset it to take the best of portable, avx2 and ifma that runs here") from None


def machine(context: Context, computation: Computation, engine: Engine, threads: int = 1) -> Machine:
    """Return what executes a computation.

    Raises:
        UsageError: "native" was asked for and is not available.
    """
    return NativeMachine(context, computation, threads) if chosen(engine) else SealMachine(context, computation)


def executor(engine: Engine) -> Executor:
    """Return for whom plans are made, without saying anything where that is not what was hoped for."""
    return "native" if engine == "native" or (engine == "auto" and available()) else "seal"


def chosen(engine: Engine) -> bool:
    """Return whether the native evaluator is to be used; warn where nobody chose and it was never built.

    Raises:
        UsageError: "native" was asked for and is not available.
    """
    if engine == "seal" or available():
        return engine != "seal"
    if engine == "native":
        raise UsageError(
            "Expected the native evaluator for engine='native'; install confide where a C++17 compiler is, and "
            "leave CONFIDE_NATIVE unset"
        )
    if _native is None:
        warnings.warn(
            "confide was installed without a C++ compiler: encrypted inference runs on Microsoft SEAL alone, slower",
            NativeUnavailable,
            stacklevel=1,  # one place, so that it is said once for all models of a process
        )
    return False


def native_context(parameters: Parameters) -> Any:
    """Return the tables of parameters, for programs and their keys."""
    assert _native is not None
    return _native.ckks.Context(parameters.degree, list(parameters.data_primes), parameters.special)


def program(native: Any) -> Any:
    """Return an empty program of a native context."""
    assert _native is not None
    return _native.ckks.Program(native)


def threads_of(wanted: int) -> int:
    """Return how many threads one answer may take: what `CONFIDE_THREADS` says, else `wanted`.

    Raises:
        UsageError: `CONFIDE_THREADS` is no number from 1 to `MOST_THREADS`.
    """
    assert _native is not None
    try:
        return _native.ckks.wanted_threads() or wanted
    except ValueError as error:
        raise UsageError(str(error)) from None


class NativeKeys:
    """A client's public keys, as programs use them.

    Args:
        context: of the parameters.
        limbs: the most primes at which each Galois element's key is read; 0 stands for relinearisation.
        native: the native context.
        public: a stranger's.
        needs: the plan's.

    Raises:
        ProtocolError: a part is missing, superfluous or malformed.
    """

    def __init__(
        self, context: Context, limbs: Mapping[int, int], native: Any, public: PublicKeys, needs: Needs
    ) -> None:
        present = (bool(public.encryption), bool(public.relinearisation), bool(public.rotation))
        if len(public.nonce) != 16 or present != (needs.encryption, needs.relinearisation, bool(needs.steps)):
            raise ProtocolError("Expected the public keys that this plan needs, and no others")
        only = PublicKeys(nonce=public.nonce, encryption=public.encryption)
        self._encryption = Evaluation(context, only, Needs(encryption=needs.encryption))
        assert _native is not None
        self.keys: Any = _native.ckks.ProgramKeys(native)
        self._limbs = limbs
        self._context = context
        degree, digits = context.parameters.degree, len(context.parameters.data_primes)
        self._load(public.relinearisation, {0: digits} if needs.relinearisation else {})
        levels = {galois_element(step, degree): used for step, used in needs.levels(digits).items()}
        self._load(public.rotation, levels)  # on the wire in the order of SEAL's positions, (element - 1) / 2

    def _load(self, body: bytes, levels: Mapping[int, int]) -> None:
        form, digits = self._context.key_form, len(self._context.parameters.data_primes)
        if len(body) != key_set_bytes(form, levels=levels.values()):
            raise ProtocolError("Expected the key-switching keys of this plan, each of full length, and no others")
        for element, residues in unpack_keys(body, form, levels):
            used = self._limbs.get(element, 0)
            assert used <= len(residues)
            if used and not self.keys.load(element, used, whole_key(residues, form, digits)):
                raise ProtocolError("Expected numbers below their primes")

    def zero(self, *, limbs: int, scale: float = 1.0) -> Ciphertext:
        return self._encryption.zero(limbs=limbs, scale=scale)

    def prepare_ahead(self) -> bool:
        """Make an encryption of zero for a later reply. Returns False if there are enough of them."""
        return self._encryption.prepare_ahead()

    @property
    def memory_bytes(self) -> int:
        """Return the memory of the keys: as far as they are read, in the form of the machine's instructions."""
        return self.keys.bytes + self._encryption.memory_bytes

    @property
    def ahead_bytes(self) -> int:
        """Return a bound of the memory that encryptions of zero take before they are used."""
        return self._encryption.ahead_bytes


class NativeMachine:
    """Execution of a program.

    Args:
        context: of the parameters.
        computation: the model's.
        threads: that one answer may take, unless `CONFIDE_THREADS` says.
    """

    def __init__(self, context: Context, computation: Computation, threads: int = 1) -> None:
        parameters = context.parameters
        self._context = context
        self._native = native_context(parameters)
        self.program = program(self._native)
        self._threads = threads_of(threads)
        recorder = Recorder(self.program, parameters)
        self._question, self._reply, self._flooding = computation.question, computation.reply, computation.flooding
        inputs = [
            recorder.input(limbs=self._question.limbs, scale=self._question.scale) for _ in range(self._question.count)
        ]
        results = computation.run(recorder, computation.encoded(recorder), inputs)
        recorder.finish(results, limbs=self._reply.limbs)

    def keys(self, public: PublicKeys, needs: Needs) -> NativeKeys:
        return NativeKeys(self._context, dict(self.program.key_limbs()), self._native, public, needs)

    def answer(self, keys: Keys, bodies: Sequence[bytes], rng: Randomness) -> tuple[bytes, ...]:
        assert isinstance(keys, NativeKeys)
        if len(bodies) != self._question.count:
            raise ProtocolError("Expected as many ciphertexts as the rows take")
        inputs = [self._read(body) for body in bodies]
        results = [np.empty(self._shape(self._reply), np.uint64) for _ in range(self._reply.count)]
        self.program.run(keys.keys, inputs, results, self._threads)
        return tuple(leave(self._context, self._native, keys, one, self._reply, self._flooding, rng) for one in results)

    def _shape(self, form: Shape) -> tuple[int, int, int]:
        return 2, form.limbs, self._context.parameters.degree

    def _read(self, body: bytes) -> Residues:
        primes = self._context.parameters.data_primes[: self._question.limbs]
        if len(body) != packed_bytes(primes, rows=2, count=self._context.parameters.degree):
            raise ProtocolError("Expected a ciphertext of the length that the plan implies")
        return unpack(body, self._shape(self._question), primes)


def leave(
    context: Context,
    native: Any,
    keys: NativeKeys,
    residues: Residues,
    reply: Shape,
    flooding: float | None,
    rng: Randomness,
) -> bytes:
    """Return a result as it travels, as `machines.leave` does."""
    degree, primes = context.parameters.degree, context.parameters.data_primes[: reply.limbs]
    if not residues[1].any():
        raise ProtocolError("Expected encryptions, not numbers in the clear")
    if flooding is not None:
        form = context.form(limbs=reply.limbs, ntt=True, scale=reply.scale)
        zero = context.residues(keys.zero(limbs=reply.limbs, scale=reply.scale), form)
        noise, shift = coefficients(flooding_slots(degree, flooding, reply.period, rng), reply.scale, degree)
        assert not shift  # it is about as large as errors are
        moduli = np.array(primes, np.uint64)[:, None]
        residues = (residues + zero) % moduli
        residues[0] = (residues[0] + native.encode(noise, reply.limbs)) % moduli
    return shown(residues, primes, reply.period, rng)
