# The training image: torch and the recipes, for CPUs or NVIDIA GPUs. Build it from the repository root:
#     docker build --file docker/training.Dockerfile --tag seqserve-training .
#     docker build --file docker/training.Dockerfile --tag seqserve-training:cuda --build-arg ACCELERATOR=cuda .
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE}
# METEOR runs on Java.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jre-headless \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /seqserve
RUN python -m venv --without-pip .venv
COPY requirements/development.txt requirements/
ARG ACCELERATOR=cpu
ARG CPU_INDEX=https://download.pytorch.org/whl/cpu
# The pinned torch is a CUDA build with 4 GB of libraries, installed with checked hashes. CPU builds of the same version
# come from PyTorch's own index, which must be trusted: their hashes differ from the pinned ones.
# The tokenizer of pycocoevalcap writes temporary files into its own folder.
RUN if [ "$ACCELERATOR" = cpu ]; then \
        sed -n -E 's/^(torch|torchvision)(==[^ ;]+).*/\1\2/p' requirements/development.txt > requirements/torch.txt \
        && awk '/^[a-z]/ { kept = !/^(cuda|nvidia)-|^(torch|torchvision|triton)==/ } kept' requirements/development.txt \
            > requirements/rest.txt \
        && python -m pip --python .venv/bin/python install --no-cache-dir --no-deps \
            --index-url "$CPU_INDEX" --requirement requirements/torch.txt; \
    else \
        cp requirements/development.txt requirements/rest.txt; \
    fi \
    && python -m pip --python .venv/bin/python install --no-cache-dir --no-deps --require-hashes \
        --requirement requirements/rest.txt \
    && chmod a+w .venv/lib/python3.11/site-packages/pycocoevalcap/tokenizer
COPY app app
COPY training training
RUN .venv/bin/python -m compileall -q app training
USER 65534:65534
# Let glibc keep freed memory, as in the Makefile: page faults cost 25 % of a step.
ENV PATH=/seqserve/.venv/bin:$PATH PYTHONPATH=/seqserve PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MPLCONFIGDIR=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    MALLOC_TOP_PAD_=1073741824 MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
ENTRYPOINT ["python", "-m", "training"]
CMD ["--help"]
