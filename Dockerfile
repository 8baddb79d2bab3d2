# em-evals on a box with an NVIDIA GPU (CUDA 12.8 driver or newer, the NVIDIA container toolkit):
#   docker build -t em-evals .
#   docker run --gpus all --rm em-evals doctor
#   docker run --gpus all --rm -v "$PWD:/work" -v em-evals-cache:/home/em/.cache em-evals verify smollm2
# Checked by a lint only: no engine and no registry were at hand where this was written.
FROM nvidia/cuda:12.8.1-cudnn-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev build-essential git \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/em-evals && /opt/em-evals/bin/pip install --no-cache-dir uv
ENV PATH=/opt/em-evals/bin:$PATH

# vLLM brings the build of torch that it was compiled against.
COPY . /src
RUN uv pip install --no-cache --python /opt/em-evals/bin/python '/src[local,train,judges,retention,insight,report,vllm]'

# Not root: logs and adapters that land in a mounted folder belong to a user.
RUN useradd --create-home --uid 10001 em
USER em
WORKDIR /work
ENTRYPOINT ["em-evals"]
CMD ["doctor"]
