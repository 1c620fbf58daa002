#!/usr/bin/env python3
"""golf against PyTorch on the CPU: a training step of models/baseline.golf, in alternating processes, as ratios.

usage: tests/bench/bench.py --golfc target/release/golfc --python PYTHON_WITH_TORCH [--rounds 5] [--rows 1 4] [--dtype bf16]
A ratio over 1 means golf is faster. Times of shared machines mean little; only the ratios within one run are reported.
"""
import argparse, json, os, statistics, subprocess, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def last_json(cmd):
    out = subprocess.run(cmd, check=True, capture_output=True, text=True).stdout
    return json.loads([l for l in out.splitlines() if l.startswith("{")][-1])


def main():
    a = argparse.ArgumentParser()
    a.add_argument("--golfc", default="target/release/golfc")
    a.add_argument("--model", default=os.path.join(HERE, "../../models/baseline.golf"))
    a.add_argument("--python", default="python3")
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--steps", type=int, default=5)
    a.add_argument("--rows", type=int, nargs="*", default=[1, 4])
    a.add_argument("--dtype", default="bf16")
    a.add_argument("--modes", nargs="*", default=["eager", "compile"])
    a = a.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        for rows in a.rows:
            run = os.path.join(tmp, f"run{rows}")
            subprocess.run([a.golfc, a.model, "--set", "train.ranks=1", "--set", f"train.batch={1024 * rows}", "-o", run], check=True)
            times = {"golf": [], **{m: [] for m in a.modes}}
            for r in range(a.rounds):
                golf = last_json([run, "bench", "--json", "--steps", str(a.steps), "--precision", a.dtype])
                times["golf"].append(statistics.median(golf["step_s"]))
                for mode in a.modes:
                    t = last_json([a.python, os.path.join(HERE, "torch_step.py"), "--rows", str(rows), "--dtype", a.dtype, "--mode", mode, "--steps", str(a.steps)])
                    times[mode].append(statistics.median(t["step_s"]))
                best = min(times[m][-1] for m in a.modes)
                print(f"B={rows} round {r + 1}/{a.rounds}: " + "  ".join(f"{k} {v[-1]:.3f}s" for k, v in times.items()) + f"  ratio {best / times['golf'][-1]:.2f}", flush=True)
            ratios = sorted(min(times[m][i] for m in a.modes) / times["golf"][i] for i in range(a.rounds))
            print(f"baseline B={rows} T=1024 {a.dtype}: {statistics.median(ratios):.2f}x of the better PyTorch mode (range {ratios[0]:.2f}-{ratios[-1]:.2f}, {a.rounds} rounds)", flush=True)


main()
