# An S3 server from the package index: moto's, which keeps everything in memory.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
COPY constraints.txt /
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir -q -c /constraints.txt 'moto[server]'
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
CMD ["moto_server", "-H", "0.0.0.0", "-p", "9000"]
