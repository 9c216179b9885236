"""How a masked and an amortised sum grow with the cohort and with the vector: figures and a plot.

    python bench/secagg_growth.py [--json FILE] [--plot FILE.png] [--quick]

One tenth of the clients drops out after key sharing; quorum 60 %. Cohorts above 60 take the sparse graph that `masked`
chooses by itself. The amortised sum, which every client shares with every other, is measured up to 200 clients. One
repeat after a first sum that warms up; seconds are each party's own, on one core.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from figures import Figure, command_line, write

from confide.ideal import Aggregator
from confide.secagg import Amortised, Masked
from confide.secagg.neighbours import degree_for
from secagg import Setting, measure

CLIENTS, LENGTHS = (10, 20, 50, 100, 200, 500, 1000), (1_000, 10_000, 100_000, 1_000_000)
LARGEST_AMORTISED = 200


def setting_of(clients: int, length: int) -> Setting:
    return Setting(clients=clients, length=length, quorum=max(3, 6 * clients // 10), drops=clients // 10)


def points(quick: bool) -> list[tuple[str, Aggregator, Setting, str]]:
    """Return (curve, aggregator, setting, what grows) of every point."""
    clients, lengths = (CLIENTS[:4], LENGTHS[:3]) if quick else (CLIENTS, LENGTHS)
    found: list[tuple[str, Aggregator, Setting, str]] = []
    for name, kind, largest in (("masked", Masked, CLIENTS[-1]), ("amortised", Amortised, LARGEST_AMORTISED)):
        found += [(name, kind(), setting_of(count, 100_000), "n") for count in clients if count <= largest]
        found += [(name, kind(), setting_of(50, length), "d") for length in lengths]
    return found


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true", help="small cohorts and vectors only")
    options = parser.parse_args()
    found, curves = list[Figure](), {}
    print(f"{'':<10} {'n':>5} {'d':>8} {'k':>4} {'client ms':>10} {'server ms':>10} {'up kB':>9}")
    for name, aggregator, setting, grows in points(options.quick):
        cost, _ = measure(setting, 1, aggregator)
        client, server, up = (statistics.median(each) for each in (cost.client_ms, cost.server_ms, cost.up_kb))
        degree = degree_for(setting.clients) if name == "masked" else setting.clients - 1
        where = f"{name:<10} {setting.clients:>5} {setting.length:>8} {degree:>4}"
        print(f"{where} {client:>10.2f} {server:>10.1f} {up:>9.1f}", flush=True)
        curves.setdefault((name, grows), []).append((setting, client, server))
        for figure, value, unit in (("client", client, "ms"), ("server", server, "ms"), ("up", up, "kB")):
            title = f"{name} n={setting.clients} d={setting.length} k={degree} {figure}"
            found.append(Figure(title, round(value, 2), unit))
    write(found, options.json)
    if options.plot:
        draw(curves, options.plot)


def draw(curves: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    for axis, grows, label in ((axes[0], "n", "clients, 100,000 values"), (axes[1], "d", "values, 50 clients")):
        for (name, what), found in curves.items():
            if what != grows:
                continue
            x = [setting.clients if grows == "n" else setting.length for setting, _, _ in found]
            for place, (who, style) in enumerate((("client", "-"), ("server", "--")), start=1):
                colour = "tab:blue" if name == "masked" else "tab:orange"
                y = [point[place] for point in found]
                axis.plot(x, y, style, marker="o", color=colour, label=f"{name}, {who}")
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="ms in one sum")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
