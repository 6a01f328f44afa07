// Draws docs/pictures: the timeline of the demo's pipeline on a simulated device, light and dark.
import { CudaTiming, SimulatedRuntime } from "effect-cuda"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { mkdirSync, writeFileSync } from "node:fs"
import * as Kernels from "../dist-examples/demo/Kernels.js"
import { pipelined } from "../dist-examples/demo/Pipeline.js"

const folder = new URL("../docs/pictures/", import.meta.url)
const chunkBytes = 1024 * 1024
const bytes = Uint8Array.from({ length: 8 * chunkBytes }, (_, index) => index * 7)
const source = {
  name: "bytes",
  byteLength: bytes.byteLength,
  read: (into, offset) => Effect.sync(() => into.set(bytes.subarray(offset, offset + into.byteLength)))
}

const device = { name: "Simulated GPU", memory: 2 ** 26, hostBandwidth: 16e6, deviceBandwidth: 40e6 }
const runtime = SimulatedRuntime.layer({ devices: [device], kernels: Kernels.simulated(device.deviceBandwidth) })

const run = pipelined(source, { chunkBytes, slots: 4 })
// The first run makes the code warm.
const { timeline } = await Effect.runPromise(Effect.andThen(run, run).pipe(Effect.provide(runtime)))

// What waits for the first bytes is not of interest.
const first = Math.min(...timeline.regions.map(({ start }) => Duration.toMillis(start)))
const regions = timeline.regions.map((region) => ({
  ...region,
  start: Duration.millis(Duration.toMillis(region.start) - first)
}))
mkdirSync(folder, { recursive: true })
for (const theme of ["light", "dark"]) {
  const svg = CudaTiming.toSvg({ ...timeline, regions }, { theme, width: 900, title: "Eight chunks through a device" })
  writeFileSync(new URL(`timeline-${theme}.svg`, folder), svg)
}
