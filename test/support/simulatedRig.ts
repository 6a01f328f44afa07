/**
 * The rig of the simulated runtime, with two devices, in real time.
 */
import * as SimulatedRuntime from "effect-cuda/SimulatedRuntime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { simulatedKernels } from "./kernels.ts"
import { Busy, NativeCode } from "./Rig.ts"
import type { Rig } from "./Rig.ts"

const busy = Layer.effect(
  Busy,
  Effect.map(SimulatedRuntime.SimulatedControl, (control) => ({
    enqueue: (stream, millis) => Effect.orDie(control.launch(stream, { duration: millis }))
  }))
)

const never = () => {
  throw new Error("a simulated device cannot run native code")
}

const native = Layer.succeed(NativeCode, { fill: never, allocate: never })

/** Small, because device memory is memory of this process. */
const device = { memory: 2 ** 30 }

export const simulatedRig: Rig = {
  name: "simulated",
  deviceCount: 2,
  hasBlas: true,
  hasNccl: true,
  layer: Layer.provideMerge(
    Layer.merge(busy, native),
    SimulatedRuntime.layer({
      devices: [device, device],
      kernels: simulatedKernels,
      globals: { counter: Uint8Array.of(5, 0, 0, 0) }
    })
  )
}
