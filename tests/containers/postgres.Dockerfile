# PostgreSQL from Debian's packages, taking the settings that the official image takes.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends postgresql && rm -rf /var/lib/apt/lists/*
COPY postgres.sh /start.sh
RUN install -d -o postgres /var/lib/postgresql/data && chmod 755 /start.sh
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data/cluster
USER postgres
CMD ["/start.sh"]
