# syntax=docker/dockerfile:1
ARG GO_IMAGE=golang:1.26-bookworm
ARG BASE_IMAGE=scratch

# The compiler runs on the builder's own architecture, whatever it builds for.
FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY pkg pkg
ARG TARGETOS TARGETARCH VERSION=unknown
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /out/ ./cmd/...

# The binaries are static and start no programs: they need nothing beside them.
FROM ${BASE_IMAGE}
ARG VERSION=unknown
LABEL org.opencontainers.image.title="rawblock-csi" \
      org.opencontainers.image.description="Raw block devices for Kubernetes pods" \
      org.opencontainers.image.source="https://github.com/rawblock-csi/rawblock-csi" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION"
COPY --from=build /out/rawblock-csi /out/rawblockctl /
# As root: it mounts, and opens the host's block devices.
USER 0:0
ENTRYPOINT ["/rawblock-csi"]
