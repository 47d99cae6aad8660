# eipnet in a container: one static program, iptables in both flavours, and nothing else.
#
#     docker build -t eipnet/eipnet .
#
# How it is to be run: docker-compose.example.yml.
ARG BASE_IMAGE=debian:trixie-slim
ARG GO_IMAGE=golang:1.26

FROM ${BASE_IMAGE} AS rootfs
RUN apt-get update && apt-get install -y --no-install-recommends iptables
COPY plugin/rootfs.sh /
RUN sh /rootfs.sh /rootfs

FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /eipnet ./cmd/eipnet

FROM scratch
COPY --from=rootfs /rootfs /
COPY --from=build /eipnet /usr/local/bin/eipnet
# The host's /run is mounted below /host.
ENV EIPNET_HOST_ROOT=/host EIPNET_DOCKER_HOST=unix:///host/run/docker.sock XTABLES_LOCKFILE=/host/run/xtables.lock
HEALTHCHECK --interval=10s --start-period=10s CMD ["/usr/local/bin/eipnet", "status", "--ready"]
ENTRYPOINT ["/usr/local/bin/eipnet"]
CMD ["serve"]
