# A container for programs with effect-cuda, on a GPU or without one:
#
#   docker build -t effect-cuda .
#   docker run --rm --gpus all effect-cuda doctor
#   docker run --rm effect-cuda demo
#
# The host needs the NVIDIA driver and the NVIDIA Container Toolkit; the image needs neither a driver nor a CUDA toolkit. Add the
# libraries that a program uses (NVRTC, cuBLASLt, NCCL), for example from NVIDIA's apt repository.

FROM node:22-slim AS build
WORKDIR /build
COPY . .
RUN mkdir /package && npm ci --no-audit --no-fund && npm pack --ignore-scripts --pack-destination /package

FROM node:22-slim
# What the container toolkit mounts: the driver for compute, and NVML.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /app
COPY --from=build /package/*.tgz /package/
RUN npm init --yes >/dev/null && npm install --no-audit --no-fund /package/*.tgz effect@^4.1.0 && npm cache clean --force
USER node
ENTRYPOINT ["npx", "effect-cuda"]
CMD ["doctor"]
