"""`configfs-tsm` against a kernel that is not there: what is written, what is refused, what is always cleaned up."""

from __future__ import annotations

import errno
import itertools
import threading

import pytest

from confide.errors import UsageError
from confide.tee.cert_table import ARK, ASK, CRL, VCEK, VLEK, endorsements_in, read_table, to_der
from confide.tee.devices import SystemDevices
from confide.tee.evidence import Provider
from confide.tee.tsm import ConfigfsTsm
from tee.kernel import SNP_REPORT_DATA, TDX4_REPORT_DATA, TDX5_REPORT_DATA, FakeTsm, cert_table, vector, with_data

DATA = bytes(range(64))


def report(data: bytes = DATA, level: int = 0) -> bytes:
    body = bytearray(1184)
    body[0:4] = (3).to_bytes(4, "little")
    body[0x30:0x34] = level.to_bytes(4, "little")
    return with_data(bytes(body), SNP_REPORT_DATA, data)


def tdx_quote(data: bytes = DATA, version: int = 4, length: int = 5006) -> bytes:
    head = version.to_bytes(2, "little") + (2).to_bytes(2, "little") + (0x81).to_bytes(4, "little")
    place = {4: TDX4_REPORT_DATA, 5: TDX5_REPORT_DATA}.get(version, TDX4_REPORT_DATA)
    return with_data(head + bytes(length - len(head)), place, data)


def snp(**settings) -> FakeTsm:
    return FakeTsm(lambda data, level: {"outblob": report(data, level or 0), "auxblob": b""}, **settings)


def tdx(**settings) -> FakeTsm:
    return FakeTsm(lambda data, _: {"outblob": tdx_quote(data)}, "tdx_guest", levels=False, **settings)


def attester(kernel: FakeTsm, **settings) -> ConfigfsTsm:
    settings.setdefault("pause", lambda seconds: pytest.fail(f"waited {seconds} s"))
    return ConfigfsTsm(devices=kernel, **settings)


# --- what is done -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernel", "provider"), [(snp(), Provider.SNP), (tdx(), Provider.TDX)])
def test_a_quote_is_one_entry_of_its_own(kernel, provider):
    source = attester(kernel)
    assert source.provider is provider
    kernel.log.clear()
    assert DATA in source.quote(DATA).evidence
    assert kernel.log == [
        "mkdir",
        "read generation",
        "write inblob",
        "read generation",
        "read provider",
        "read outblob",
        "read auxblob",
        "read manifestblob",
        "read generation",
        "rmdir",
    ]
    assert kernel.entries == {}


@pytest.mark.parametrize(
    ("name", "place", "provider"),
    [
        ("intel_dcap_phala/tdx_quote", TDX4_REPORT_DATA, "tdx_guest"),
        ("intel_tdx_google/quote_v5_sample.dat", TDX5_REPORT_DATA, "tdx_guest"),
        ("intel_tdx_google/cos-113-tdx-quote.dat", TDX4_REPORT_DATA, "tdx_guest"),
        ("coco_trustee/snp/test-report.bin", SNP_REPORT_DATA, "sev_guest"),
        ("coco_trustee/az-snp-vtpm/genoa_snp_report_extracted.bin", SNP_REPORT_DATA, "sev_guest"),
    ],
)
def test_real_evidence_leaves_as_it_came(name, place, provider):
    real = vector(name)
    kernel = FakeTsm(lambda data, _: {"outblob": with_data(real, place, data)}, provider)
    assert attester(kernel).quote(real[place]).evidence == real


def test_the_certificates_of_amd_s_host_are_stapled():
    ask, ark = _chain("amd_snp_google/ask_ark_milan.pem")
    vcek = vector("coco_trustee/snp/test-vcek.der")
    table = cert_table([(str(VCEK), vcek), (str(ASK), ask), (str(ARK), ark)], page=4096)
    kernel = FakeTsm(lambda data, _: {"outblob": report(data), "auxblob": table})
    endorsements = attester(kernel).quote(DATA).endorsements
    assert endorsements["vcek.der"] == vcek
    assert set(endorsements) == {"vcek.der", "chain.pem"}
    assert [to_der(part) for part in _blocks(endorsements["chain.pem"])] == [ask, ark]


def test_a_manifest_is_stapled_where_there_is_one():
    kernel = FakeTsm(lambda data, _: {"outblob": report(data), "manifestblob": b"services"})
    assert attester(kernel).quote(DATA).endorsements == {"manifest.bin": b"services"}


def test_a_privilege_level_is_written_counted_and_checked():
    kernel = snp()
    evidence = attester(kernel, privilege_level=2).quote(DATA).evidence
    assert evidence[0x30] == 2
    deaf = FakeTsm(lambda data, _: {"outblob": report(data, 0)})
    with pytest.raises(UsageError, match="privilege_level=2"):
        attester(deaf, privilege_level=2).quote(DATA)
    with pytest.raises(UsageError, match="from 0 to 3"):
        attester(kernel, privilege_level=4)
    with pytest.raises(UsageError, match="on SEV-SNP only"):
        attester(tdx(), privilege_level=1)
    with pytest.raises(UsageError, match="privilege level"):
        attester(snp(floor=2), privilege_level=1).quote(DATA)


def test_entries_of_others_are_never_used():
    kernel = snp()
    source = attester(kernel)
    made = iter(range(3))

    def other_process(operation, path):
        if operation == "mkdir" and next(made, None) is not None:
            kernel.entries[path] = object()  # would fail at any use

    kernel.spy = other_process
    assert DATA in source.quote(DATA).evidence
    assert len(kernel.entries) == 3


def test_threads_do_not_meet():
    kernel = snp()
    source = attester(kernel)
    wrong = []

    def ask(number: int) -> None:
        data = bytes([number]) * 64
        for _ in range(20):
            if data not in source.quote(data).evidence:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert kernel.entries == {}


# --- interference -----------------------------------------------------------------------------------------------------

STEPS = ["write inblob", "read generation", "read provider", "read outblob", "read auxblob"]


@pytest.mark.parametrize("step", STEPS)
def test_a_second_writer_is_noticed_wherever_it_comes(step):
    """Somebody writes to our entry before `step`; the evidence must not leave, whatever it says."""
    kernel = snp()
    source = attester(kernel)
    fresh = itertools.count()

    def intruder(operation, path):
        if operation == step and next(fresh) == 0:
            entry = kernel.entries[path.rpartition("/")[0]]
            entry.inblob, entry.written = bytes(64), entry.written + 1

    kernel.spy = intruder
    with pytest.raises(UsageError, match="generation=|our own data"):
        source.quote(DATA)
    assert kernel.entries == {}


def test_a_second_writer_of_the_same_bytes_is_noticed_too():
    kernel = snp()
    source = attester(kernel)

    def intruder(operation, path):
        if operation == "read outblob":
            kernel.entries[path.rpartition("/")[0]].written += 1

    kernel.spy = intruder
    with pytest.raises(UsageError, match="generation=1 .*got '2'.*look who"):
        source.quote(DATA)


def test_a_write_that_the_kernel_lost_is_noticed():
    """configfs commits `inblob` when it is closed and drops the error."""
    kernel = snp()
    kernel.write = lambda path, data: None
    with pytest.raises(UsageError, match="generation=1 .*got '0'"):
        attester(kernel).quote(DATA)


@pytest.mark.parametrize("blob", [report(bytes(64)), report(DATA[::-1])])
def test_evidence_about_other_data_does_not_leave(blob):
    kernel = FakeTsm(lambda data, _: {"outblob": blob})
    with pytest.raises(UsageError, match="our own data"):
        attester(kernel).quote(DATA)


def test_a_provider_that_changes_is_refused():
    kernel = snp()
    source = attester(kernel)
    kernel.provider, kernel.answer = "tdx_guest", lambda data, _: {"outblob": tdx_quote(data)}
    with pytest.raises(UsageError, match="our own data"):
        source.quote(DATA)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_where_there_is_no_such_guest():
    with pytest.raises(UsageError, match="Expected attester='configfs-tsm' to find /sys/.*modprobe tdx_guest"):
        attester(snp(mounted=False))
    with pytest.raises(UsageError, match="no driver is there; load it"):
        attester(snp(provider=None))
    with pytest.raises(UsageError, match="got 'arm_cca_guest'"):
        attester(snp(provider="arm_cca_guest"))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EACCES, "only root may ask"),
        (errno.EPERM, "a container needs"),
        (errno.EROFS, "reading only"),
        (errno.ENXIO, "load it"),
        (errno.EFBIG, "larger than"),
        (errno.ETIMEDOUT, "quoting service does not answer"),
        (errno.EIO, "quoting service failed"),
        (errno.ENOMEM, "memory"),
    ],
)
@pytest.mark.parametrize("step", ["mkdir", "write inblob", "read outblob", "read provider"])
def test_errors_are_explained_and_the_entry_is_removed(step, number, text):
    kernel = snp()
    source = attester(kernel)
    kernel.errors = {step: [number]}
    with pytest.raises(UsageError, match=text):
        source.quote(DATA)
    assert kernel.entries == {}


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EAGAIN])
@pytest.mark.parametrize("step", ["mkdir", "write inblob", "read outblob"])
def test_busy_hardware_is_asked_again_with_growing_pauses(step, number):
    kernel, waited = snp(), []
    source = attester(kernel, pause=waited.append)
    kernel.errors = {step: [number] * 3}
    assert DATA in source.quote(DATA).evidence
    assert len(waited) == 3
    assert waited == sorted(set(waited))
    assert kernel.entries == {}


def test_hardware_that_stays_busy_ends_it():
    kernel, waited = snp(), []
    source = attester(kernel, pause=waited.append)
    kernel.errors = {"read outblob": [errno.EBUSY] * 1000}
    with pytest.raises(UsageError, match="stayed busy"):
        source.quote(DATA)
    assert 2 < len(waited) < 12
    assert sum(waited) < 10
    assert kernel.entries == {}


def test_an_entry_that_cannot_be_removed_costs_no_evidence():
    kernel = snp()
    source = attester(kernel)
    kernel.errors = {"rmdir": [errno.EBUSY]}
    assert DATA in source.quote(DATA).evidence
    assert DATA in source.quote(DATA).evidence  # and its name is not used again


def test_a_folder_full_of_entries_is_an_error():
    kernel = snp()
    source = attester(kernel)
    kernel.errors = {"mkdir": [errno.EEXIST] * 1000}
    with pytest.raises(UsageError, match="remove those that nobody uses"):
        source.quote(DATA)


@pytest.mark.parametrize(
    ("blob", "provider", "text"),
    [
        (b"", "sev_guest", "1184 bytes, got 0"),
        (report()[:-1], "sev_guest", "1184 bytes"),
        (b"", "tdx_guest", "version 4 or 5"),
        (tdx_quote()[:600], "tdx_guest", "known form"),
        (tdx_quote(version=3), "tdx_guest", "got version 3"),
        (b"\xd9\xd9\xf7" + bytes(9000), "tdx_guest", "DICE"),
    ],
)
def test_answers_in_another_form_are_refused(blob, provider, text):
    kernel = FakeTsm(lambda data, _: {"outblob": blob}, provider)
    with pytest.raises(UsageError, match=text):
        attester(kernel).quote(DATA)


# --- the table of certificates ----------------------------------------------------------------------------------------


def _blocks(pem: bytes) -> list[bytes]:
    end = b"-----END CERTIFICATE-----\n"
    return [part + end for part in pem.split(end) if part.strip()]


def _chain(name: str) -> list[bytes]:
    return [to_der(block) for block in _blocks(vector(name).replace(b"\r\n", b"\n"))]


def test_a_guid_stands_as_it_is_printed():
    """Sixteen bytes from the GHCB's text, written down here by hand: VCEK."""
    table = bytes.fromhex("63da758de6644564adc5f4b93be8accd") + (48).to_bytes(4, "little") + (4).to_bytes(4, "little")
    assert endorsements_in(table + bytes(24) + bytes.fromhex("30020500")) == {"vcek.der": bytes.fromhex("30020500")}


def test_empty_tables_are_hosts_that_give_nothing():
    assert read_table(b"") == read_table(bytes(24)) == read_table(bytes(4096)) == {}


def test_vlek_and_lists_and_pem_and_strangers():
    der = vector("coco_trustee/snp/test-vlek.der")
    ask = vector("amd_snp_google/trust/ask_ark_milan_vlek.pem")
    entries = [
        (str(VLEK), der),
        (str(CRL), bytes.fromhex("30020500")),
        (str(ASK), ask),
        ("00000000-0000-0000-0000-000000000001", b"?"),
    ]
    found = endorsements_in(cert_table(entries))
    assert found == {"vlek.der": der, "crl.der": bytes.fromhex("30020500")}  # half a chain is none


@pytest.mark.parametrize(
    "table",
    [
        VCEK.bytes + (0).to_bytes(4, "little") + (4).to_bytes(4, "little") + bytes(24),
        VCEK.bytes + (48).to_bytes(4, "little") + (1 << 31).to_bytes(4, "little") + bytes(24),
        VCEK.bytes + (0xFFFFFFFF).to_bytes(4, "little") + (0xFFFFFFFF).to_bytes(4, "little") + bytes(24),
        VCEK.bytes + b"\1",
        cert_table([(str(VCEK), b"\x30\0"), (str(VCEK), b"\x30\0")]),
        cert_table([(str(VCEK), b"no certificate")]),
        cert_table([(str(VCEK), b"\x30\x82\xff\xff")]),
        cert_table([(f"00000000-0000-0000-0000-{number:012}", b"?") for number in range(1, 50)]),
    ],
)
def test_tables_that_lie_are_refused(table):
    with pytest.raises(UsageError):
        endorsements_in(table)


# --- the real operations, on ordinary files ---------------------------------------------------------------------------


def test_the_operations_of_this_machine(tmp_path):
    devices, folder = SystemDevices(), tmp_path / "entry"
    devices.make_folder(str(folder))
    with pytest.raises(FileExistsError):
        devices.make_folder(str(folder))
    with pytest.raises(FileNotFoundError):
        devices.write(str(folder / "inblob"), b"x")  # nothing is made
    devices.remove_folder(str(folder))
    assert not devices.exists(str(folder))
    file = tmp_path / "blob"
    file.write_bytes(bytes(100_000))
    assert devices.read(str(file), 100_000) == bytes(100_000)
    with pytest.raises(OSError, match="too large") as caught:
        devices.read(str(file), 99_999)
    assert caught.value.errno == errno.EFBIG
