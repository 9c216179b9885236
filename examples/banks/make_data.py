"""Card payments of four invented banks, as each bank would export them: `python make_data.py [FOLDER]`.

Everybody is made up, from one seed. About 0.7 % of the payments are fraud, of three kinds that no single column gives
away: cards that are tried out (many small payments online, within minutes), stolen cards (large amounts abroad, by
magnetic stripe or for things that sell well), and accounts that were taken over (a new device, the limit nearly used).
The banks differ in customers and in what hits them; and, as banks do, in names, units, codes and dates.
"""

from __future__ import annotations

import csv
import gzip
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

SEED = 20240229
START = np.datetime64("2023-01-01T00:00", "m")
GOODS = ("groceries", "fuel", "restaurant", "travel", "electronics", "gambling", "cash")
CHANNELS = ("chip", "contactless", "online", "stripe")
REGIONS = ("home", "europe", "world")

#: Rows; shares of goods, channels and regions; the mean of log(amount); chances of the three kinds of fraud.
BANKS = {
    "alpine": (40_000, (35, 15, 20, 10, 8, 2, 10), (45, 30, 23, 2), (80, 17, 3), 3.4, (0.003, 0.002, 0.002)),
    "baltic": (30_000, (30, 10, 15, 10, 20, 10, 5), (20, 25, 53, 2), (60, 30, 10), 3.1, (0.006, 0.001, 0.002)),
    "central": (25_000, (40, 20, 20, 5, 5, 1, 9), (60, 30, 8, 2), (92, 6, 2), 3.3, (0.001, 0.003, 0.001)),
    "delta": (20_000, (20, 10, 25, 25, 12, 3, 5), (30, 30, 37, 3), (50, 30, 20), 4.0, (0.002, 0.003, 0.003)),
}

Payments = dict[str, np.ndarray]


def payments(bank: str) -> Payments:
    """Return the payments of a bank in common terms, in the order of time."""
    rows, goods, channels, regions, level, kinds = BANKS[bank]
    rng = np.random.default_rng([SEED, list(BANKS).index(bank)])
    tried, stolen, taken = (rng.random(rows) < share for share in kinds)
    day = rng.integers(0, 730, rows)
    hour = np.where(tried | taken, rng.normal(3, 4, rows), rng.normal(14, 4.5, rows)) % 24
    amount = np.exp(rng.normal(level, 1.0, rows))
    amount = np.where(tried, np.exp(rng.normal(1.2, 0.7, rows)), amount)
    amount = np.where(stolen, np.exp(rng.normal(level + 1.8, 0.8, rows)), amount)
    amount = np.where(taken, np.exp(rng.normal(level + 1.4, 0.6, rows)), amount)
    since = np.where(tried, rng.exponential(6, rows), rng.exponential(1400, rows))

    def mixed(shares: Sequence[float], fraud: np.ndarray, of_fraud: Sequence[float]) -> np.ndarray:
        usual = rng.choice(len(shares), rows, p=np.array(shares) / sum(shares))
        return np.where(fraud, rng.choice(len(shares), rows, p=np.array(of_fraud) / sum(of_fraud)), usual)

    what = mixed(goods, stolen | taken, (2, 2, 2, 15, 45, 14, 20))
    channel = mixed(channels, stolen, (5, 20, 30, 45))
    channel = np.where(tried | taken, np.where(rng.random(rows) < 0.9, 2, channel), channel)
    order = np.argsort(day * 1440 + (hour * 60).astype(int), kind="stable")
    found = {
        "customer": rng.integers(0, rows // 12, rows),
        "amount": np.round(np.clip(amount, 0.5, 20_000), 2),
        "booked": START + (day * 1440 + (hour * 60).astype(int)).astype("timedelta64[m]"),
        "goods": np.array(GOODS)[what],
        "channel": np.array(CHANNELS)[channel],
        "region": np.array(REGIONS)[mixed(regions, stolen, (25, 30, 45))],
        "minutes_since_last": np.where(rng.random(rows) < 0.04, np.nan, np.round(np.clip(since, 0, 40_000))),
        "payments_today": np.clip(rng.poisson(np.where(tried, 7, 1.4)), 0, 50),
        "limit_used": np.clip(np.where(taken, rng.beta(8, 2, rows), rng.beta(1.6, 4, rows)), 0, 1).round(3),
        "months_open": np.where(rng.random(rows) < 0.02, np.nan, np.round(rng.gamma(2.2, 30, rows).clip(0, 480))),
        "new_device": rng.random(rows) < np.where(taken, 0.85, 0.05),
        "fraud": (tried | stolen | taken) & (rng.random(rows) < 0.95),  # some are never found out
    }
    return {name: values[order] for name, values in found.items()}


def clock(form: str) -> Callable[[np.datetime64], str]:
    return lambda moment: moment.astype(object).strftime(form)


def number(form: str, gap: str, factor: float = 1.0, mark: str = ".") -> Callable[[float], str]:
    return lambda value: gap if np.isnan(value) else format(value * factor, form).replace(".", mark)


def coded(codes: dict[str, str]) -> Callable[[str], str]:
    return lambda value: codes[str(value)]


def flag(no: str, yes: str) -> Callable[[bool], str]:
    return lambda value: yes if value else no


def rows_of(columns: Payments, export: dict[str, tuple[str, Callable]]) -> Iterable[list[str]]:
    """Yield the header and the records as a bank writes them; `export` has the common name and how a value is said."""
    yield list(export)
    said = [list(map(say, columns[name])) for name, say in export.values()]
    yield from (list(row) for row in zip(*said, strict=True))


EXPORTS = {
    "alpine": {
        "Kunde": ("customer", lambda value: f"AL{value:06d}"),
        "Betrag_Rappen": ("amount", number(".0f", "", 100)),
        "Zeit": ("booked", clock("%d.%m.%Y %H:%M")),
        "Branche": ("goods", coded(dict(zip(GOODS, "LTRVEGB", strict=True)))),
        "Kanal": ("channel", coded({"chip": "C", "contactless": "K", "online": "W", "stripe": "M"})),
        "Gebiet": ("region", coded({"home": "Inland", "europe": "EU", "world": "Übersee"})),
        "Min_seit_letzter": ("minutes_since_last", number(".0f", "-1")),
        "Anzahl_Tag": ("payments_today", str),
        "Limite_Prozent": ("limit_used", number(".1f", "", 100, ",")),
        "Konto_Monate": ("months_open", number(".0f", "")),
        "Neues_Geraet": ("new_device", flag("N", "J")),
        "Betrug": ("fraud", flag("N", "J")),
    },
    "baltic": {
        "client_id": ("customer", lambda value: f"B-{value}"),
        "amount": ("amount", number(".2f", "")),
        "booked": ("booked", clock("%Y-%m-%dT%H:%M")),
        "goods": ("goods", str),
        "channel": ("channel", str),
        "region": ("region", str),
        "minutes_since_last": ("minutes_since_last", number(".0f", "NA")),
        "payments_today": ("payments_today", str),
        "limit_used": ("limit_used", number(".3f", "NA")),
        "months_open": ("months_open", number(".0f", "NA")),
        "fraud": ("fraud", flag("0", "1")),
    },
    "central": {
        "cust": ("customer", str),
        "amt": ("amount", number(".2f", "")),
        "ts": ("booked", lambda moment: str(moment.astype("datetime64[s]").astype(int))),
        "mcc": (
            "goods",
            coded(dict(zip(GOODS, ("5411", "5541", "5812", "4511", "5732", "7995", "6011"), strict=True))),
        ),
        "entry": ("channel", coded({"chip": "05", "contactless": "07", "online": "81", "stripe": "90"})),
        "area": ("region", coded({"home": "0", "europe": "1", "world": "2"})),
        "hours_since_last": ("minutes_since_last", number(".4f", "999999", 1 / 60)),
        "n24": ("payments_today", str),
        "util": ("limit_used", number(".3f", "")),
        "open_years": ("months_open", number(".4f", "", 1 / 12)),
        "newdev": ("new_device", flag("0", "1")),
        "chargeback": ("fraud", flag("none", "fraud")),
    },
    "delta": {
        "CUSTOMER": ("customer", lambda value: f"D{value}"),
        "AMOUNT_EUR": ("amount", number(".2f", "", 1.0, ",")),
        "BOOKED": ("booked", clock("%m/%d/%y %H:%M")),
        "CATEGORY": ("goods", lambda value: str(value).upper()),
        "ENTRY": ("channel", lambda value: str(value).upper()),
        "REGION": ("region", lambda value: str(value).upper()),
        "MIN_LAST": ("minutes_since_last", number(".0f", "?")),
        "PER_DAY": ("payments_today", str),
        "LIMIT": ("limit_used", number(".3f", "?", 1.0, ",")),
        "MONTHS": ("months_open", number(".0f", "?")),
        "NEW_DEVICE": ("new_device", flag("no", "yes")),
        "LABEL": ("fraud", flag("OK", "FRAUD")),
    },
}

#: Name, separator and encoding of each bank's file.
FILES = {
    "alpine": ("alpine.csv", ";", "latin-1"),
    "baltic": ("baltic.csv.gz", ",", "utf-8"),
    "central": ("central.csv", ",", "utf-8"),
    "delta": ("delta.tsv", "\t", "utf-8"),
}


#: A fifth bank's payments of today, nobody knows yet which are fraud; it says everything as the schema does.
TODAY = {
    **{name: export for name, export in EXPORTS["baltic"].items() if name not in ("client_id", "fraud")},
    "new_device": ("new_device", flag("no", "yes")),
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for bank, (name, separator, encoding) in FILES.items():
        found = payments(bank)
        opened = gzip.open if name.endswith(".gz") else open
        with opened(folder / name, "wt", encoding=encoding, newline="") as file:
            csv.writer(file, delimiter=separator, lineterminator="\n").writerows(rows_of(found, EXPORTS[bank]))
        frauds = int(found["fraud"].sum())
        print(f"wrote {folder / name}: {len(found['fraud'])} payments, {frauds} of them fraud")
    asked = {name: values[::500] for name, values in payments("delta").items()}
    with (folder / "today.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows_of(asked, TODAY))
    print(f"wrote {folder / 'today.csv'}: {len(asked['fraud'])} payments to ask about")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data"))
