# rt-pipelines on Python 3.11, for GPU and CPU nodes alike.
#
# No CUDA base image: torch's wheels from PyPI bring the CUDA libraries, and the optimizers are torch's own, so that
# nothing is compiled with nvcc. A GPU node needs NVIDIA's driver and container toolkit (docker run --gpus all).
FROM python:3.11-slim-bookworm

# git for the revision of a checkout in the container; g++ for DeepSpeed's optional kernels.
RUN apt-get update && apt-get install --yes --no-install-recommends git g++ && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/rt-pipelines
COPY constraints.txt .
COPY pyproject.toml README.md LICENSE ./
COPY rt_models rt_models
COPY preprocessing preprocessing
COPY cluster cluster
COPY tuning tuning
COPY pipelines pipelines
COPY examples examples
RUN pip install --no-cache-dir --constraint constraints.txt '.[gcs]'

WORKDIR /work
ENTRYPOINT ["rtp"]
CMD ["--help"]
