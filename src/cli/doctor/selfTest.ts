/**
 * A test of a device that takes about a second: copies both ways, a kernel, events and waits, with their figures.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as CudaDevice from "../../CudaDevice.ts"
import type { CudaError } from "../../CudaError.ts"
import * as CudaEvent from "../../CudaEvent.ts"
import * as CudaKernel from "../../CudaKernel.ts"
import * as CudaMemory from "../../CudaMemory.ts"
import * as CudaModule from "../../CudaModule.ts"
import * as CudaParameter from "../../CudaParameter.ts"
import * as CudaProgram from "../../CudaProgram.ts"
import * as CudaStream from "../../CudaStream.ts"
import type { CudaRuntime } from "../../layers/CudaRuntime.ts"
import { finding } from "./report.ts"
import type { Finding } from "./report.ts"

/** Tests a device. A failure or a wrong result is a finding, not a failure of the effect. */
export const testDevice = (
  device: CudaDevice.CudaDevice
): Effect.Effect<ReadonlyArray<Finding>, never, CudaRuntime> => {
  const problem = (found: string) => [finding(`test of device ${device.index}`, "failed", "problem", found)]
  return measure(device).pipe(
    Effect.scoped,
    Effect.timeoutOrElse({
      duration: timeout,
      orElse: () => Effect.succeed(problem(`not finished after ${timeout}: the device is busy, or hangs`))
    }),
    Effect.catch((error) => Effect.succeed(problem(error.message)))
  )
}

const timeout = "20 seconds"
const byteLength = 64 * 1024 ** 2
const rounds = 4

const measure = Effect.fnUntraced(function*(device: CudaDevice.CudaDevice) {
  const section = `test of device ${device.index}`
  const options = { device }
  const stream = yield* CudaStream.make(options)
  const host = yield* CudaMemory.allocateHost(byteLength)
  const buffer = yield* CudaMemory.allocate(byteLength, options)
  const words = CudaMemory.view(host, Uint32Array)
  for (let at = 0; at < words.length; at++) words[at] = at

  const double = yield* loadKernel(options)
  const upload = yield* timed(device, stream, CudaMemory.copy(buffer, host, stream))
  const config = { grid: byteLength / 4 / block, block }
  const kernel = yield* timed(device, stream, CudaKernel.launch(double, config, [buffer], stream))
  words.fill(0)
  const download = yield* timed(device, stream, CudaMemory.copy(host, buffer, stream))
  // Every call doubles all words.
  const isRight = words.every((word, at) => word === Math.imul(at, 1 << rounds) >>> 0)
  const wait = yield* waitLatency(device, stream)

  const rate = (seconds: number) => `${(byteLength / seconds / 1e9).toFixed(1)} GB/s`
  const micros = (seconds: number) => `${(seconds * 1e6).toFixed(1)} µs`
  return [
    finding(section, "copy to device", "ok", rate(upload), { details: { bytesPerSecond: byteLength / upload } }),
    finding(section, "copy to host", "ok", rate(download), { details: { bytesPerSecond: byteLength / download } }),
    isRight
      ? finding(section, "kernel", "ok", `${micros(kernel)} for 64 MiB, result right`, { details: { seconds: kernel } })
      : finding(section, "kernel", "problem", "the result is wrong", {
        advice: "The GPU or its memory may be broken: look for Xids in the kernel log and at nvidia-smi -q -d ECC."
      }),
    finding(section, "record and wait", "ok", micros(wait), { details: { seconds: wait } })
  ]
})

/** Seconds of GPU time that an operation takes: the least of some rounds. */
const timed = Effect.fnUntraced(function*(
  device: CudaDevice.CudaDevice,
  stream: CudaStream.CudaStream,
  operation: Effect.Effect<void, CudaError>
) {
  const start = yield* CudaEvent.make({ timing: true, device })
  const end = yield* CudaEvent.make({ timing: true, device })
  let least = Number.POSITIVE_INFINITY
  for (let round = 0; round < rounds; round++) {
    yield* CudaEvent.record(start, stream)
    yield* operation
    yield* CudaEvent.record(end, stream)
    yield* CudaEvent.synchronize(end)
    least = Math.min(least, Duration.toMillis(yield* CudaEvent.elapsedTime(start, end)))
  }
  return least / 1000
})

/** Seconds of the host from recording an event on an idle stream until a wait for it ends: the median. */
const waitLatency = Effect.fnUntraced(function*(device: CudaDevice.CudaDevice, stream: CudaStream.CudaStream) {
  const event = yield* CudaEvent.make({ device })
  const times: Array<number> = []
  for (let round = 0; round < 201; round++) {
    const start = yield* Clock.currentTimeNanos
    yield* CudaEvent.record(event, stream)
    yield* CudaEvent.synchronize(event)
    times.push(Number((yield* Clock.currentTimeNanos) - start))
  }
  return times.toSorted((a, b) => a - b)[100]! / 1e9
})

const block = 256

/** The kernel's name, for simulated devices. */
export const kernelName = "effect_cuda_doctor_double"

/** Doubles each word of a buffer. PTX for every device, so that the test needs no compiler. */
const ptx = `.version 6.4
.target sm_52
.address_size 64
.visible .entry ${kernelName}(.param .u64 words)
{
  .reg .b32 %r<6>;
  .reg .b64 %a<4>;
  ld.param.u64 %a1, [words];
  cvta.to.global.u64 %a1, %a1;
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %tid.x;
  mad.lo.s32 %r4, %r1, %r2, %r3;
  mul.wide.u32 %a2, %r4, 4;
  add.s64 %a3, %a1, %a2;
  ld.global.u32 %r5, [%a3];
  shl.b32 %r5, %r5, 1;
  st.global.u32 [%a3], %r5;
  ret;
}
`

const loadKernel = Effect.fnUntraced(function*(options: CudaDevice.DeviceOptions) {
  const program = yield* CudaProgram.fromBytes(new TextEncoder().encode(ptx))
  const module = yield* CudaModule.load(program)
  return yield* CudaKernel.get(module, kernelName, [CudaParameter.pointer], options)
})
