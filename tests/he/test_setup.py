"""Making keys: the secret stays, the same keys go again after a crash, a server knows whose they are."""

import pytest

from confide.errors import Aborted, ProtocolError, UsageError
from confide.he.backend import Homomorphic
from confide.he.engine_native import NativeKeys, available, native_context
from confide.he.loaded import EXPANSION, LoadedKeys
from confide.he.parameters import Parameters
from confide.he.recorder import galois_element
from confide.he.seal import Context, Evaluation, Needs, ntt_primes
from confide.he.setup import Owned, Registered, key_id_of, owned, setup_server
from confide.wire import MemoryStore, Message, Step, alter, encode, lose, run, truncate
from he.oracle import Pair, corners, logistic, ready

GRAPH = logistic(1, 5)


def entries(store: MemoryStore) -> dict[str, bytes]:
    return dict(store._entries)


def test_both_sides_name_the_keys_by_their_hash():
    pair = Pair(Homomorphic(), GRAPH)
    transcript = pair.setup()
    body = transcript.messages[0].body
    assert transcript.outputs == {"client": key_id_of(body), "server": key_id_of(body)}
    assert transcript.depth == 2
    assert pair.stores["server"].get(f"he/keys/{key_id_of(body)}") == body


def test_the_secret_stays_in_the_clients_store():
    pair = Pair(Homomorphic(), GRAPH)
    transcript = pair.setup()
    secret = owned("he", pair.client.encode(), pair.stores["client"]).secret
    assert any(secret in value for value in entries(pair.stores["client"]).values())
    middle = secret[len(secret) // 2 :][:64]
    assert not any(middle in message.body for message in transcript.messages)
    assert not any(middle in value for value in entries(pair.stores["server"]).values())
    assert secret.hex()[:16] not in repr(Owned("0" * 64, secret))


def test_setting_up_again_sends_the_same_keys():
    pair = Pair(Homomorphic(), GRAPH)
    first, second = pair.setup(), pair.setup()
    assert first.messages[0].body == second.messages[0].body
    assert first.outputs == second.outputs


def test_a_client_whose_upload_was_lost_tries_again_with_the_same_keys():
    pair = Pair(Homomorphic(), GRAPH)
    lost = pair.setup(fault=lose("client", tag="he/keys"))
    assert isinstance(lost.failures["client"], Aborted)
    saved = entries(pair.stores["client"])
    assert saved
    again = pair.setup()
    assert again.messages[0].body in saved.values()
    assert pair.predict(corners(1, 5)).output("client").shape == (1, 1)


def test_clients_of_one_server_have_keys_of_their_own():
    server = MemoryStore()
    ids = {Pair(Homomorphic(protect_model=False), GRAPH, server=server).setup().output("client") for _ in range(3)}
    assert len(ids) == 3


def test_keys_of_two_plans_do_not_meet():
    client = MemoryStore()
    ids = [Pair(Homomorphic(), logistic(1, features), client=client).setup().output("client") for features in (5, 6)]
    assert ids[0] != ids[1]
    assert len(entries(client)) == 4


@pytest.mark.parametrize(
    "fault",
    [
        truncate(100, tag="he/keys"),
        truncate(0, tag="he/keys"),
        alter(lambda body: body[:-1] + bytes([body[-1] ^ 255]), tag="he/keys"),
        alter(lambda body: body + b"\0", tag="he/keys"),
    ],
)
def test_a_malformed_upload_is_refused_and_not_kept(fault):
    pair = Pair(Homomorphic(), GRAPH)
    transcript = pair.setup(fault=fault)
    assert isinstance(transcript.failures["server"], ProtocolError)
    assert not entries(pair.stores["server"])


@pytest.mark.parametrize("reply", [b"", b"\x81\xa6key_id\xa1x", b"\x80", b"\xff" * 300])
def test_another_key_id_is_refused(reply):
    pair = Pair(Homomorphic(), GRAPH)
    transcript = pair.setup(fault=alter(lambda body: reply, tag="he/key-id"))
    assert isinstance(transcript.failures["client"], ProtocolError)


def test_predicting_without_keys_says_what_to_do():
    pair = Pair(Homomorphic(), GRAPH)
    with pytest.raises(UsageError, match="setup"):
        pair.predict(corners(1, 5))


def test_a_server_refuses_keys_that_it_has_forgotten():
    pair = ready(Homomorphic(), GRAPH)
    assert pair.predict(corners(1, 5)).output("client").shape == (1, 1)  # the kit has parsed them by now
    pair.stores["server"].commit(dict.fromkeys(entries(pair.stores["server"])))
    assert isinstance(pair.predict(corners(1, 5)).failures["server"], ProtocolError)


def test_a_server_keeps_the_latest_parsed_keys():
    store, parsed = MemoryStore(), []
    loaded = LoadedKeys(2 * EXPANSION)  # two keys of one byte
    registered = Registered("x", lambda body: parsed.append(body) or body, loaded=loaded)
    for body in (b"a", b"b", b"c"):
        store.commit({f"x/keys/{key_id_of(body)}": body, f"x/known/{key_id_of(body)}": b"\1"})
    for body in (b"a", b"b", b"a", b"c", b"a", b"b"):
        assert registered.get(key_id_of(body), store) == body
    assert parsed == [b"a", b"b", b"c", b"b"]
    assert (len(loaded), loaded.held_bytes) == (2, 2 * EXPANSION)
    for wrong in ("", "0" * 64, key_id_of(b"a")[:-1], "../" * 20, "\0" * 64):
        with pytest.raises(ProtocolError):
            registered.get(wrong, store)


def test_kits_that_share_room_do_not_share_keys():
    loaded = LoadedKeys(10)
    one, two = object(), object()
    assert loaded.get(one, "k", lambda: (b"of one", 1)) == b"of one"
    assert loaded.get(two, "k", lambda: (b"of two", 1)) == b"of two"
    assert loaded.get(one, "k", lambda: (b"again", 1)) == b"of one"
    loaded.forget(one, "k")
    assert loaded.get(one, "k", lambda: (b"again", 1)) == b"again"
    assert loaded.held_bytes == 2 * EXPANSION
    loaded.get(one, "large", lambda: (b"beyond all room", 100))  # one that is at work is never thrown out
    assert (len(loaded), loaded.held_bytes) == (1, 100 * EXPANSION)


def test_uploads_have_a_size(monkeypatch):
    monkeypatch.setattr("confide.he.setup.MAX_KEYS_BYTES", 10)

    def stranger():
        yield Step(send=(Message("client", "server", "x/keys", bytes(11)),))

    transcript = run({"client": stranger(), "server": setup_server("x", lambda body: None)})
    assert isinstance(transcript.failures["server"], ProtocolError)


def test_owned_keys_have_a_wire_form_for_the_store_only():
    store = MemoryStore()
    store.commit({"x/e3b0c44298fc1c14/secret": encode(Owned("0" * 64, b"s"))})
    assert owned("x", b"", store).secret == b"s"


TRIMMED = Needs(encryption=True, relinearisation=True, steps=(1, 2, 3, 4), limbs=(1, 1, 1, 2))


def parsed(engine: str):
    """The keys of a plan that uses most of them at one prime of three, as an engine holds them; bytes of the upload."""
    context = Context(Parameters(scheme="ckks", degree=8192, primes=ntt_primes(8192, (50, 50, 50, 50))))
    _, public = context.generate(bytes(16), TRIMMED)
    size = len(public.encryption + public.relinearisation + public.rotation)
    if engine == "seal":
        return Evaluation(context, public, TRIMMED), size
    limbs = {galois_element(step, 8192): used for step, used in TRIMMED.levels(3).items()} | {0: 3}
    return NativeKeys(context, limbs, native_context(context.parameters), public, TRIMMED), size


def test_keys_state_the_memory_that_seal_takes():
    """More than twice the upload, by SEAL's own count of the words of what it loaded."""
    keys, size = parsed("seal")
    bodies = [keys._relinearisation.to_string(), keys._rotation.to_string()]
    taken = sum(map(len, bodies)) + 16 * 8192 * 4
    assert 0.97 * taken < keys.memory_bytes < 1.03 * taken
    assert keys.memory_bytes > EXPANSION * size
    loaded = LoadedKeys(1)
    loaded.get(object(), "k", lambda: (keys, size))
    assert loaded.held_bytes == keys.memory_bytes + keys.ahead_bytes


@pytest.mark.skipif(not available(), reason="installed without a C++ compiler")
def test_keys_state_the_memory_that_the_native_evaluator_takes():
    """As far as each is read, at least 50 bits of a number and at most 64; the public key is SEAL's."""
    keys, _ = parsed("native")
    numbers = 2 * 8192 * (3 * 1 * 2 + 2 * 3 + 3 * 4)
    own = keys.memory_bytes - 8 * 2 * 8192 * 4
    assert numbers * 50 / 8 < own < 1.02 * numbers * 8
    loaded = LoadedKeys(1)
    loaded.get(object(), "k", lambda: (keys, 1))
    assert loaded.held_bytes == keys.memory_bytes + keys.ahead_bytes
