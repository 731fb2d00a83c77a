# SPDX-License-Identifier: Apache-2.0
"""Every command of this checkout, from a bare Python and a C++ compiler: `python3 dev.py demo`, `python3 dev.py test`, ...

Standard library only, and readable by Python 3.8, so that an old Python gets a sentence instead of a syntax error.
All it creates lies in the checkout, where git ignores it: environments `.venv*`, `build/` with pip's cache, caches of tools, results.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time

ROOT = pathlib.Path(__file__).resolve().parent
OLDEST = (3, 11)
PHOTOS = (".jpg", ".png")
CACHES = {"PIP_CACHE_DIR": "pip", "UV_CACHE_DIR": "uv", "VIRTUALENV_OVERRIDE_APP_DATA": "virtualenv", "KERAS_HOME": "keras"}  # in build/


class Refusal(Exception):
    """This machine lacks something; the text is the one sentence the user gets."""


# ---------------------------------------------------------------- commands


def demo(arguments):
    """install tconv and double the size of the shipped photograph"""
    python = environment(".venv", "cli")
    photo = next((p for p in sorted((ROOT / "examples").iterdir()) if p.suffix in PHOTOS), None)
    if photo is None:
        raise Refusal("examples/ holds no photograph: this checkout is not complete.")
    result = ROOT / "upscaled.png"
    run(python.with_name("tconv"), "upscale", photo.relative_to(ROOT), result.name, "--scale", 2, *arguments)
    say("result", str(result))


def test(arguments):
    """set everything up and run the tests (small judges only: NumPy, SciPy, ONNX Runtime, hypothesis)"""
    python = environment(".venv", "cli", "test")
    if arguments:
        return run(python, "-m", "pytest", *arguments)
    run(python, "-m", "pytest", "-q", "tests", "--ignore=tests/frameworks")


def frameworks(arguments):
    """compare with PyTorch, TensorFlow, Keras and JAX, in an environment of their own (gigabytes)"""
    python = environment(".venv-frameworks", "cli", "test", "frameworks")
    run(python, "-m", "pytest", "-q", *(arguments or ["tests/frameworks"]))


def lint(arguments):
    """ruff: rules and formatting (`lint --fix` mends both)"""
    python = environment(".venv", "cli", "test", "lint")
    fix = "--fix" in arguments
    run(python, "-m", "ruff", "check", *(["--fix"] if fix else []), ".")
    run(python, "-m", "ruff", "format", *([] if fix else ["--check"]), ".")


def types(arguments):
    """mypy --strict over the package"""
    python = environment(".venv", "cli", "test", "lint")
    run(python, "-m", "mypy", "--strict", "src/tconv", *arguments)


def imports(arguments):
    """modules import only from the rows below them (.importlinter)"""
    python = environment(".venv", "cli", "test", "lint")
    run(python.with_name("lint-imports"), "--no-cache", *arguments, env={"PYTHONPATH": str(ROOT / "src")})


def docs(arguments):
    """build the site, warnings are errors, and run the examples in the documents"""
    python = environment(".venv", "cli", "test", "docs")
    run(python, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html", *arguments)
    run(python, "-m", "pytest", "-q", "tests/test_docs.py")
    say("site", str(ROOT / "docs/_build/html/index.html"))


def sanitize(arguments):
    """build with address and undefined-behaviour sanitizers and run the core's tests under them (Linux, g++)"""
    python = environment(".venv-sanitize", "cli", "test", variant="sanitize")
    runtime = output(compiler(), "-print-file-name=libasan.so")
    if not os.path.isabs(runtime):
        raise Refusal(f"{compiler()} has no address sanitizer to preload: install g++ and run this again with CXX=g++.")
    env = {
        # Python itself is not instrumented, so the runtime must come first; it looks for libstdc++'s throw when it starts
        "LD_PRELOAD": f"{runtime} {output(compiler(), '-print-file-name=libstdc++.so.6')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # CPython keeps interned objects to the end
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # pymalloc's arenas would hide overruns
    }
    names = ("kernels", "operators", "depthwise", "rows", "half", "winograd", "gradients", "threads", "bad_input")
    core = [f"tests/test_{name}.py" for name in names]
    # GCC's address sanitizer may hold its allocator's lock when another thread forks: not a lock of ours.
    core += ["--deselect", "tests/test_threads.py::test_forks_while_another_thread_is_in_a_call"]
    run(python, "-m", "pytest", "-q", *(arguments or core), env=env)


def neon(arguments):
    """cross-compile the core for 64-bit ARM and run its kernels under emulation (Debian: g++-aarch64-linux-gnu, qemu-user)"""
    cross, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    for tool in (cross, emulator):
        if shutil.which(tool) is None:
            raise Refusal(f"{tool} is missing: on Debian, apt-get install g++-aarch64-linux-gnu qemu-user cmake.")
    built = build_check("neon", CMAKE_SYSTEM_NAME="Linux", CMAKE_SYSTEM_PROCESSOR="aarch64", CMAKE_CXX_COMPILER=cross,
                        CMAKE_EXE_LINKER_FLAGS="-static")  # fmt: skip
    run(emulator, built, *arguments)


def native(arguments):
    """what `neon` runs, built for this processor and as a whole: no name for two types, nor one that other processors lack"""
    run(build_check("native", CMAKE_CXX_FLAGS="-flto -Werror=odr"), *arguments)


def build_check(name, **options):
    if shutil.which("cmake") is None:
        raise Refusal("cmake is missing: install it (Debian, Ubuntu: apt install cmake) and run this again.")
    build = ROOT / "build" / name
    options = {"TCONV_CHECK": "ON", "CMAKE_BUILD_TYPE": "Release", **options}
    run("cmake", "-S", ROOT, "-B", build, *(f"-D{name}={value}" for name, value in options.items()))
    run("cmake", "--build", build, "--parallel", os.cpu_count() or 1)
    return build / "check"


def bench(arguments):
    """time our kernels beside every installed peer: `bench --help`"""
    python = environment(".venv-frameworks", "cli", "test", "frameworks", "bench")
    run(python, "-m", "bench", *arguments)


def guard(arguments):
    """instructions of small layers against the committed counts (Valgrind); `guard --update` renews them"""
    check_valgrind()
    python = environment(".venv", "cli", "test")
    run(python, "-m", "bench", "guard", *arguments)


def check_valgrind():
    if shutil.which("valgrind") is None:
        raise Refusal("the guard counts instructions with valgrind, which is missing: install it (Debian, Ubuntu: apt install valgrind) "
                      "and run this again.")  # fmt: skip


def sizes(arguments):
    """lines of every source file, and which are over the budget of 500"""
    over = []
    for top, kinds in (("src", ".py .pyi"), ("src", ".cc .h .inc"), ("tests", ".py"), ("bench", ".py")):
        found = {p: len(p.read_bytes().splitlines()) for p in walk(ROOT / top) if p.suffix in kinds.split()}
        for path, lines in sorted(found.items(), key=lambda item: -item[1]):
            print(f"{lines:6d}  {path.relative_to(ROOT).as_posix()}")
        over += [path.name for path, lines in found.items() if lines > 500]
        print(f"{sum(found.values()):6d}  {top}, {kinds}: {len(found)} files\n")
    if over:
        raise SystemExit(f"dev.py: over 500 lines: {', '.join(over)}")


def everything(arguments):
    """test, frameworks, lint, types, imports, docs, native, guard and sizes"""
    start = time.monotonic()
    check_valgrind()  # now, not after the rest has passed
    for command in (test, frameworks, lint, types, imports, docs, native, guard, sizes):
        print(f"== {command.__name__}", flush=True)
        command([])
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    print(f"== all passed in {minutes} min {seconds} s")


COMMANDS = {
    command.__name__: command
    for command in (demo, test, frameworks, lint, types, imports, docs, sanitize, neon, native, bench, guard, sizes)
}
COMMANDS["all"] = everything


# ---------------------------------------------------------------- environments


def environment(name, *extras, variant="release"):
    """The Python of an environment that holds tconv as the sources are now, with at least these extras."""
    home = ROOT / name
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = home / "tconv-stamp.json"
    if not has_pip(python):
        check_machine()
        create(home, python)
    held = json.loads(stamp.read_text()) if stamp.exists() else {"extras": []}
    wanted = {"source": fingerprint(), "extras": sorted({*held["extras"], *extras})}
    if held != wanted:
        check_machine()
        stamp.unlink(missing_ok=True)  # an interrupted installation must not look finished
        wheel = build(python, variant, wanted["source"])
        install(name, python, wheel, wanted["extras"])
        stamp.write_text(json.dumps(wanted))
    return python


def check_machine():
    """Everything a build needs and pip cannot bring."""
    again = "and run this again."
    if compiler() is None:
        raise Refusal(f"tconv needs a C++17 compiler: install g++ (Debian, Ubuntu: apt install g++) or clang {again}")
    if not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists():
        raise Refusal(f"tconv needs the C headers of {sys.executable}: install them (Debian, Ubuntu: apt install python3-dev) {again}")


def compiler():
    """The compiler that CMake will take: $CXX, or the first of the usual names."""
    named = shlex.split(os.environ.get("CXX", ""))[:1]
    return next(filter(None, map(shutil.which, named or ["c++", "g++", "clang++"])), None)


def create(home, python):
    """A virtual environment with pip, by the first of five ways that this machine allows."""
    me = sys.executable
    ways = [
        [[me, "-m", "venv", home]],  # needs ensurepip, which Debian packs apart
        [[me, "-m", "virtualenv", home]],
        [["virtualenv", "-p", me, home]],
        [["uv", "venv", "--seed", "-p", me, home]],
        [[me, "-m", "venv", "--without-pip", home], [me, "-m", "pip", "--python", python, "install", "pip"]],
    ]
    with step("environment", f"{home.name} (Python {sys.version.split()[0]})"):
        for way in ways:
            shutil.rmtree(home, ignore_errors=True)
            if all(succeeds(*command) for command in way) and has_pip(python):
                return
        shutil.rmtree(home, ignore_errors=True)
        raise Refusal(f"{me} cannot make a virtual environment with pip: install one of python3-venv, virtualenv, uv or pip "
                      "and run this again.")  # fmt: skip


def build(python, variant, source):
    """The wheel of these sources in build/; one build serves all environments and reuses the objects of the last."""
    folder = ROOT / "build" / variant
    stamp, wheels = folder / "source", folder / "wheel"
    if not stamp.exists() or stamp.read_text() != source:
        with step("build", f"tconv with {compiler()}"):
            quiet(python, "-m", "pip", "install", *build_requirements())
            shutil.rmtree(wheels, ignore_errors=True)
            objects = folder / f"{pathlib.Path(compiler()).name}-{{wheel_tag}}"  # CMake keeps to the compiler and Python it first saw
            settings = [f"build-dir={objects}", *(["cmake.define.TCONV_SANITIZE=ON"] if variant == "sanitize" else [])]
            quiet(python, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-w", wheels,
                  *(f"--config-settings={setting}" for setting in settings))  # fmt: skip
            stamp.write_text(source)
    return next(wheels.glob("tconv-*.whl"))


def install(name, python, wheel, extras):
    """Install the wheel afresh, and what the extras ask for."""
    with step("install", f"tconv[{','.join(extras)}] into {name}"):
        quiet(python, "-m", "pip", "install", "--force-reinstall", "--no-deps", wheel)
        quiet(python, "-m", "pip", "install", f"{wheel}[{','.join(extras)}]")


def build_requirements():
    """What pyproject.toml asks for, and the CMake and Ninja that an isolated build would fetch."""
    import tomllib

    return [*tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"], "cmake>=3.26", "ninja"]


def fingerprint():
    """A hash of all that the installed package is made of."""
    digest = hashlib.sha256(repr((sys.version, compiler(), os.environ.get("CXXFLAGS"))).encode())
    for path in (p for top in ("pyproject.toml", "CMakeLists.txt", "README.md", "extern", "src") for p in walk(ROOT / top)):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def walk(top):
    """The file, or the files below a folder in order, without what Python and builds leave there."""
    found = [top] if top.is_file() else sorted(top.rglob("*"))
    return [p for p in found if p.is_file() and "__pycache__" not in p.parts and p.suffix not in (".so", ".pyd")]


def has_pip(python):
    return python.exists() and succeeds(python, "-c", "import pip")


# ---------------------------------------------------------------- running and telling


def say(what, detail):
    print(f"{what:<12} {detail}", flush=True)


@contextlib.contextmanager
def step(what, detail):
    """One line: what is done, and the seconds it took."""
    print(f"{what:<12} {detail}", end=" ", flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"({time.monotonic() - start:.0f} s)", flush=True)


def run(*command, env=None):
    """Show a command and run it in the checkout; its failure is ours."""
    words = [str(word) for word in command]
    say("run", shlex.join([os.path.relpath(words[0], ROOT), *words[1:]]))
    code = subprocess.run(words, check=False, cwd=ROOT, env={**os.environ, **(env or {})}).returncode
    if code < 0:
        raise SystemExit(f"dev.py: signal {-code} ended this: {shlex.join(words)}")
    if code:
        raise SystemExit(code)


def quiet(*command):
    """Run a command whose output matters only when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, check=False, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          encoding="utf-8", errors="replace")  # fmt: skip
    if done.returncode:
        print(f"\n{done.stdout}")
        raise SystemExit(f"dev.py: this failed with exit code {done.returncode}: {shlex.join(words)}")


def succeeds(*command):
    """Whether a command exists and ends well; for questions, so silent."""
    nothing = subprocess.DEVNULL
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        return False
    return subprocess.run(words, check=False, stdin=nothing, stdout=nothing, stderr=nothing).returncode == 0


def output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout.strip()


def main(words):
    if sys.version_info < OLDEST:
        named = next((n for n in (f"python3.{minor}" for minor in range(20, OLDEST[1] - 1, -1)) if succeeds(n, "-c", "")), None)
        advice = f"this machine has {named}, run it with that" if named else "install a newer one and run this again"
        raise Refusal(f"tconv needs Python {OLDEST[0]}.{OLDEST[1]} or newer and this is {sys.version.split()[0]}: {advice}.")
    if not words or words[0] not in COMMANDS:
        print("python3 dev.py COMMAND\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<11} {command.__doc__}")
        return 0 if not words or words[0] in ("-h", "--help", "help") else 2
    for name, folder in CACHES.items():
        os.environ.setdefault(name, str(ROOT / "build" / folder))
    COMMANDS[words[0]](words[1:])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Refusal as refusal:
        print(f"dev.py: {refusal}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
