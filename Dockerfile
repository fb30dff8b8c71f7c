# busq itself: watchdogs, `busq doctor` and all other commands, and the placeholder application of the chart.
#
# Your own application goes on top of the same recipe, with its own requirements:
#
#     FROM ghcr.io/busq/busq:0.1.0
#     COPY --chown=0:0 . /app
#     RUN pip install --no-cache-dir -r /app/requirements.txt
#     WORKDIR /app
#
# Nothing in here is written to at run time: run it with a read-only root file system and a /tmp of its own.
FROM python:3.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY busq ./busq
RUN python -m venv /opt/busq && /opt/busq/bin/pip install --no-cache-dir --no-compile .

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="busq" \
      org.opencontainers.image.description="A job bus on Redis Streams whose cancel is durable, fast, provable and honest." \
      org.opencontainers.image.licenses="MIT"
ENV PATH=/opt/busq/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=build /opt/busq /opt/busq
WORKDIR /tmp
# A number, so that Kubernetes can tell that it is not root; the chart sets the same.
USER 10001:10001
# Exec form: busq is process 1 and gets the signals itself.
ENTRYPOINT ["busq"]
CMD ["--help"]
