# PostgreSQL and an S3 server from Debian's packages, for compose.local.yaml where no registry offers the images of
# compose.yaml. They take the same variables, ports and folders.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS postgres
RUN mkdir -p /etc/postgresql-common/createcluster.d \
    && echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/spin.conf \
    && apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s "$(ls -d /usr/lib/postgresql/*/bin)"/* /usr/local/bin/ \
    && install --directory --owner postgres --group postgres --mode 700 /var/lib/postgresql/data
COPY images/postgres.sh /usr/local/bin/
USER postgres
CMD ["postgres.sh"]

# Ceph, by the script that starts it for the tests
FROM ${BASE} AS s3
RUN apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
        ceph-mon ceph-osd radosgw ceph-common ceph-base curl util-linux \
    && rm -rf /var/lib/apt/lists/* && install --directory --owner 10002 /data
COPY s3/up.sh s3/down.sh images/s3.sh /usr/local/bin/
COPY own_folder.sh /usr/local/
USER 10002
CMD ["s3.sh"]
