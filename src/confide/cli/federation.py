"""`confide federation`: who is a member. Founding, invitations, certificates, revocation, fingerprints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from confide.cli import console
from confide.errors import UsageError

app = typer.Typer(
    no_args_is_help=True,
    help="Who is a member of a federation: found it, invite, join, renew, revoke, compare fingerprints.",
    epilog="A federation has an authority of its own; nobody needs one already. docs/federation.md walks through it.",
)

Coordinators = Annotated[Path, typer.Option(help="The coordinator's folder, which `init` made.")]
Either = Annotated[Path, typer.Argument(metavar="FOLDER", help="A coordinator's or a member's folder.")]
RequestOut = Annotated[
    Path | None, typer.Option(help="Write the request to this file instead of connecting; its reader can sign it.")
]
ProxyThrough = Annotated[
    str | None,
    typer.Option("--proxy", help="http://HOST:PORT of a proxy, or direct; HTTPS_PROXY if left out."),
]
CertificateIn = Annotated[
    Path | None, typer.Option(help="Complete with the file that `confide federation sign` wrote.")
]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Is made; holds the authority's key.")],
    address: Annotated[str, typer.Option(help="HOST:PORT at which members reach the coordinator.")],
    name: Annotated[str, typer.Option(help="The federation's name, for people.")] = "federation",
    also: Annotated[
        list[str] | None, typer.Option(help="A further DNS name or IP address of the coordinator; may be repeated.")
    ] = None,
) -> None:
    """Found a federation: its authority, and the folder of its coordinator.

    Members dial the address, so it must be the one that they see, from outside. The folder holds every key of the
    coordinator: back it up, and let nobody else read it.

        confide federation init federation --address train.example.org:8443 --name "Three hospitals"
    """
    from confide.net.founding import found

    found(folder, name=name, address=address, also=also or ())
    console.out.print(f"wrote {folder}")
    _print_authority(folder)
    console.err.print(
        f"next: confide federation invite NAME --federation {folder} --out NAME.invitation, for each member;\n"
        f"then: confide coordinator JOB.toml --federation {folder}, which answers those who join,\n"
        f"or, to predict with others: confide serve MODEL.confide --federation {folder}, which answers them too"
    )


@app.command()
def invite(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The member's: letters, digits, '-', '_' and '.'.")],
    role: Annotated[
        str,
        typer.Option(
            help="node (has data), helper (second server, keyholder), third (third server), dealer, client or analyst."
        ),
    ] = "node",
    host: Annotated[
        list[str] | None,
        typer.Option(help="DNS name or IP address at which others dial a dealer, helper or third; may be repeated."),
    ] = None,
    valid_hours: Annotated[float, typer.Option(help="How long the invitation can be used.")] = 72.0,
    out: Annotated[Path | None, typer.Option(help="File for the invitation; standard output if left out.")] = None,
    federation: Coordinators = Path(),
) -> None:
    """Invite one organisation, once: prints an invitation to pass on.

    The invitation is a password. Send it over a channel that you trust; read the fingerprint aloud by telephone.

        confide federation invite north --federation federation --out north.invitation
    """
    from confide.model.artifact import write_whole
    from confide.net.certificates import day
    from confide.net.enrolment import spoken
    from confide.net.registrar import Registrar

    invitation = Registrar(federation).invite(name, role, valid_hours=valid_hours, hosts=host or ())
    if out is None:
        console.out.print(invitation.text(), end="")
    else:
        write_whole(out, invitation.text().encode())
        console.out.print(f"wrote {out}")
    console.err.print(
        f"Pass this on to {name}, over a channel that you both trust. There, until {day(invitation.expires)}, once:\n"
        f"  confide federation join {out.name if out else 'INVITATION'} --into {name}\n"
        f"It is answered while `{_answers(role, federation)}` runs. Then compare by telephone.\n"
        f"The authority: {spoken(invitation.fingerprint)}\n"
        f"{name}'s identity: confide federation roster {federation}"
    )


def _answers(role: str, federation: Path) -> str:
    """Return the command that answers somebody who joins: whichever runs in a federation of that role."""
    jointly = f"confide serve --federation {federation}"
    jobs = f"confide coordinator --federation {federation}"
    if role in ("dealer", "third", "client"):
        return jointly
    return f"{jobs}` or `{jointly}" if role == "helper" else jobs


@app.command()
def join(
    context: typer.Context,
    invitation: Annotated[
        Path | None, typer.Argument(metavar="INVITATION", help="The file that the coordinator gave you.")
    ] = None,
    into: Annotated[Path, typer.Option(help="Your folder; is made. It holds your keys.")] = Path("identity"),
    request: RequestOut = None,
    certificate: CertificateIn = None,
    proxy: ProxyThrough = None,
) -> None:
    """Become a member: draws your keys here, and has the coordinator certify their public halves.

    Where the network lets nobody connect without a certificate, the same goes by mail: --request writes a file without
    secrets for the coordinator, --certificate takes the coordinator's answer. After an error, run it again.

        confide federation join north.invitation --into identity
    """
    from confide.cli.proxies import proxy_for, surroundings
    from confide.net.enrolment import Invitation, armour
    from confide.net.folders import read
    from confide.net.membership import begin_join
    from confide.net.membership import join as join_over

    if certificate is not None:
        if invitation is not None or request is not None:
            raise UsageError("Expected --certificate without INVITATION and --request; leave the others out")
        _complete(into, certificate)
        return
    if invitation is None:
        raise UsageError("Expected INVITATION, the file that the coordinator gave you; or --certificate")
    invited = Invitation.parse(read(invitation).decode(errors="replace"), str(invitation))
    if request is not None:
        body = begin_join(into, invited)
        _write_request(request, armour(body, "REQUEST"))
        console.err.print(f"then: confide federation join --into {into} --certificate FILE")
        return
    from confide.net.asking import asking

    through = proxy_for(invited.coordinator, proxy, surroundings(context))
    join_over(into, invited, asking(invited.coordinator, invited.authorities, invited.identity, proxy=through))
    _print_member(into)


@app.command()
def sign(
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="A file that join or renew wrote.")],
    out: Annotated[Path, typer.Option(help="File for the certificate, to send back.")],
    federation: Coordinators = Path(),
) -> None:
    """Answer a request that came as a file; what it checks is what a connection would.

    confide federation sign north.request --out north.certificate --federation federation
    """
    from confide.net.enrolment import armour, unarmour
    from confide.net.folders import read, write_public
    from confide.net.registrar import Registrar

    answer = Registrar(federation).grant(unarmour(read(request), "REQUEST", str(request)))
    write_public(out, armour(answer, "CERTIFICATE"))
    console.out.print(f"wrote {out}")
    console.err.print("send it back; it is not secret")


@app.command()
def renew(
    context: typer.Context,
    folder: Either = Path(),
    request: RequestOut = None,
    certificate: CertificateIn = None,
    proxy: ProxyThrough = None,
) -> None:
    """Take a new key and certificate, for the same identity; also when the old certificate has expired.

    Running nodes and coordinators do this by themselves. In a coordinator's folder it renews the coordinator's own.

        confide federation renew identity
    """
    from confide.cli.proxies import proxy_for, surroundings
    from confide.net.enrolment import armour
    from confide.net.folders import FEDERATION
    from confide.net.founding import refresh
    from confide.net.membership import begin_renewal, membership, trusted
    from confide.net.membership import renew as renew_over

    if (folder / FEDERATION).exists():
        if request is not None or certificate is not None:
            raise UsageError("Expected no --request and no --certificate: a coordinator renews its own by itself")
        refresh(folder, force=True)
        _print_expiry(folder)
    elif certificate is not None:
        _complete(folder, certificate)
    elif request is not None:
        _write_request(request, armour(begin_renewal(folder), "REQUEST"))
        console.err.print(f"then: confide federation renew {folder} --certificate FILE")
    else:
        from confide.net.asking import asking

        said = membership(folder)
        identity = bytes.fromhex(said.coordinator_identity)
        through = proxy_for(said.coordinator, proxy, surroundings(context))
        renew_over(folder, asking(said.coordinator, trusted(folder), identity, proxy=through))
        _print_expiry(folder)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A member, or somebody invited.")],
    federation: Coordinators = Path(),
) -> None:
    """Let nothing of a member in any more; a running coordinator notices at once.

    It is for ever: to come back, the organisation is invited again and joins with a new identity.

        confide federation revoke north --federation federation
    """
    from confide.net.registrar import Registrar

    standing = Registrar(federation).revoke(name)
    console.out.print(f"revoked {name}" if standing else f"withdrew the invitation of {name}")


@app.command()
def rotate(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The coordinator's folder.")] = Path(),
    finish: Annotated[bool, typer.Option("--finish", help="Trust the new authority alone from now on.")] = False,
) -> None:
    """Replace the authority without a stop: a new one, which the old one endorses.

    Members accept both and learn the new one when they renew, within 90 days; then run it with --finish.

        confide federation rotate federation
    """
    from confide.net.founding import retire
    from confide.net.founding import rotate as replace

    if finish:
        retire(folder)
    else:
        replace(folder)
    _print_authority(folder)


@app.command("list")
def list_members(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The coordinator's folder.")] = Path(),
) -> None:
    """List members and invitations: name, role, until when, fingerprint of the certificate.

    confide federation list federation
    """
    from confide.net.certificates import day
    from confide.net.founding import utc_now
    from confide.net.registrar import Registrar

    registrar = Registrar(folder)
    for one in registrar.members():
        state = "until" if one.expires > utc_now() else "EXPIRED"
        state, when = ("REVOKED", one.revoked) if one.revoked is not None else (state, one.expires)
        console.out.print(f"{one.name:<16} {one.role:<8} {state:<7} {day(when)}  {one.fingerprint}")
    for one in registrar.invitations():
        console.out.print(f"{one.name:<16} {one.role:<8} invited {day(one.expires)}")


@app.command()
def roster(
    folder: Either = Path(),
    node: Annotated[
        list[str] | None,
        typer.Option(help="A node, repeated in a job's order; all, by name, if left out."),
    ] = None,
) -> None:
    """Print identities, and the fingerprint that people compare by telephone.

    At the coordinator: the roster of the nodes, as lines NAME = "identity" on standard output. In a member's folder:
    its own line. The same line at both ends means that nobody sits between.

        confide federation roster federation
    """
    from confide.cohort.roster import Roster
    from confide.crypto.keys import SigningKey
    from confide.net.enrolment import spoken
    from confide.net.folders import MEMBER, identity_seed
    from confide.net.membership import membership
    from confide.net.registrar import Registrar

    if (folder / MEMBER).exists():
        lines: tuple[tuple[str, bytes], ...] = ((membership(folder).name, SigningKey(identity_seed(folder)).public),)
    else:
        registrar = Registrar(folder)
        lines = registrar.roster()
        if node:
            known = dict(lines)
            if absent := [name for name in node if name not in known]:
                raise UsageError(f"Expected nodes of this federation, not {', '.join(absent)}; see federation list")
            lines = tuple((name, known[name]) for name in dict.fromkeys(node))
    for name, identity in lines:
        console.out.print(f'"{name}" = "{identity.hex()}"')
    if lines and not (folder / MEMBER).exists():
        console.err.print(f"roster of {len(lines)} nodes: {spoken(Roster(lines).fingerprint)}")
    _print_authority(folder)


@app.command("flower-app")
def flower_app(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Is made; `flwr run` ships what is in it.")],
) -> None:
    """Write the app that carries a federation's messages over Flower: one file, without a key, for `flwr run`.

    confide federation flower-app flower-app
    """
    from confide.net.flower import write_app

    write_app(folder)
    console.out.print(f"wrote {folder}")
    console.err.print(
        f"next, with Flower's own flwr: flwr run {folder} SUPERLINK --run-config 'confide-socket=\"/PATH/SOCKET\"'\n"
        "and beside it: confide coordinator JOB.toml --federation FOLDER --flower /PATH/SOCKET"
    )


def _complete(folder: Path, certificate: Path) -> None:
    from confide.net.enrolment import unarmour
    from confide.net.folders import read
    from confide.net.membership import complete

    complete(folder, unarmour(read(certificate), "CERTIFICATE", str(certificate)))
    _print_member(folder)


def _write_request(path: Path, body: bytes) -> None:
    from confide.net.folders import write_public

    write_public(path, body)
    console.out.print(f"wrote {path}")
    console.err.print(
        "send it to the coordinator, whose operator runs: confide federation sign REQUEST --out CERTIFICATE\n"
        "it is not secret; your keys stay here"
    )


def _print_member(folder: Path) -> None:
    from confide.net.enrolment import spoken
    from confide.net.membership import membership, own

    said, member = membership(folder), own(folder)
    console.out.print(f"{member.name}: {member.role} of {said.federation!r}")
    _print_expiry(folder)
    console.err.print(f"your identity, to compare by telephone: {spoken(member.identity.hex())}")
    _print_authority(folder)


def _print_expiry(folder: Path) -> None:
    from confide.net.certificates import day
    from confide.net.membership import own

    console.out.print(f"certificate until {day(own(folder).expires)}")


def _print_authority(folder: Path) -> None:
    from confide.net.certificates import fingerprint
    from confide.net.enrolment import spoken
    from confide.net.membership import trusted

    current, *older = trusted(folder)
    console.err.print(f"the authority, to compare by telephone: {spoken(fingerprint(current))}")
    for one in older:
        console.err.print(f"still trusted, being replaced: {spoken(fingerprint(one))}")
