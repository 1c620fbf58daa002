#!/usr/bin/env python3
"""From timings of one program compiled with several cuts to a table for `golfc --tuning`.

usage: tune.py DEFAULT.log OTHER.log...      (outputs of `run bench --kernels 1000`)

Kernels of the others are named as in the first with the cut after it. A contraction's time is that of all its launches. A choice is recorded where it
saves at least 3% of the contraction's time and 0.2% of all contractions'.
"""
import re
import sys

LINE = re.compile(r"^gemm_([0-9a-f]{16})(?:_(\d+x\d+(?:_turns|_kept)?))?_(cast_a|cast_b|main|reduce)\s+([0-9.]+)\s+(\d+)")


def times(path):
    """Milliseconds a step by contraction and cut (None: the plan's own)."""
    found = {}
    for line in open(path):
        m = LINE.match(line)
        if m:
            key = (f"gemm_{m[1]}", m[2] and m[2].replace("_", "-"))
            found[key] = found.get(key, 0.0) + float(m[4])
    return found


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    default = {symbol: ms for (symbol, _), ms in times(sys.argv[1]).items()}
    if not default:
        sys.exit(f"{sys.argv[1]}: no contraction is timed there")
    total, saved = sum(default.values()), 0.0
    best = {symbol: (ms, None) for symbol, ms in default.items()}
    for path in sys.argv[2:]:
        for (symbol, cut), ms in times(path).items():
            if cut and symbol in best and ms < best[symbol][0]:
                best[symbol] = (ms, cut)
    for symbol, (ms, cut) in sorted(best.items(), key=lambda item: item[1][0] - default[item[0]]):
        gain = default[symbol] - ms
        if cut and gain > 0.03 * default[symbol] and gain > 0.002 * total:
            print(f"{symbol} {cut} # {default[symbol]:.3f} ms a step with the plan's own cut, {ms:.3f} so")
            saved += gain
    print(f"# {saved:.3f} of {total:.3f} ms of contractions a step saved")


if __name__ == "__main__":
    main()
