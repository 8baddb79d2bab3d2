# The Python environment of one finding. Source this file, then call: environment PACKAGE==VERSION ...
#
# By default a virtual environment is made in a temporary folder, the pinned packages are installed there with pip (as
# pip is configured on this machine) and all of it is removed at the end.
#   FINDINGS_LATEST=1      installs the newest versions instead: has it been mended upstream?
#   FINDINGS_VENV=FOLDER   uses that virtual environment as it is and installs nothing.

environment() {
    local packages=("$@") names=("${@%%==*}")
    if [[ -n "${FINDINGS_VENV:-}" ]]; then
        PATH="$FINDINGS_VENV/bin:$PATH"
    else
        FINDINGS_FOLDER="$(mktemp -d "${TMPDIR:-/tmp}/finding.XXXXXX")"
        trap 'rm -rf "$FINDINGS_FOLDER"' EXIT
        python3 -m venv "$FINDINGS_FOLDER/venv"
        PATH="$FINDINGS_FOLDER/venv/bin:$PATH"
        [[ -z "${FINDINGS_LATEST:-}" ]] || packages=("${names[@]}")
        python -m pip install --quiet --upgrade pip  # older ones need long to find versions that fit inspect-ai
        python -m pip install --quiet "${packages[@]}"
        # vLLM brings PyPI's torchvision, torchaudio and torchcodec, which do not load beside a CPU build of torch; no finding needs them.
        python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null || true
    fi
    # Models are built from seeds: nothing is downloaded, and progress bars would hide the numbers.
    export PATH HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 CUDA_VISIBLE_DEVICES="" TOKENIZERS_PARALLELISM=false
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    python -c 'import platform, sys
from importlib.metadata import version
print("python", platform.python_version(), *(f"| {name} {version(name)}" for name in sys.argv[1:]))' "${names[@]}"
}
