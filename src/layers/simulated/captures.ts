/**
 * Captures on simulated devices, where native code cannot run: a function of the program stands in for it.
 */
import { statuses, success } from "../../cuda/status.ts"
import { ForeignWait } from "../CudaRuntime.ts"
import type { ForeignRest, ForeignWork, MemoryRange } from "../CudaRuntime.ts"
import type { CaptureBackend, CapturedGraph, DriverCapture } from "../shared/captures.ts"
import { ownMemory } from "../shared/resources.ts"
import type { StreamResource } from "../shared/resources.ts"
import type { SimulatedDriver } from "./Driver.ts"
import { usualCost } from "./kernelFunctions.ts"
import { enqueueWaiting } from "./model/branches.ts"
import type { Enqueue } from "./model/branches.ts"
import { memoryPart, streamPart } from "./resources.ts"

/** There is no stream of the driver. */
class SimulatedCapture implements DriverCapture {
  readonly handle = 0
  readonly deviceIndex: number
  constructor(deviceIndex: number) {
    this.deviceIndex = deviceIndex
  }
}

/** The function that stands in for the work is all of it. */
const captured: CapturedGraph = { nodes: 1, allocates: false }

export class SimulatedCaptures implements CaptureBackend {
  begun: DriverCapture | undefined
  readonly #driver: SimulatedDriver

  constructor(driver: SimulatedDriver) {
    this.#driver = driver
  }

  readonly simulate = (work: ForeignWork, stream: StreamResource): number => {
    const part = streamPart(stream)
    const status = this.#driver.begin("cuLaunchKernelEx", part.device)
    if (status !== success) return status
    const ready = this.prepare(work)
    if (typeof ready === "number") return ready
    ready(part)
    return success
  }

  begin(deviceIndex: number): number {
    this.begun = new SimulatedCapture(deviceIndex)
    return this.#driver.begin("cuStreamBeginCapture", this.#driver.device(deviceIndex))
  }

  end(capture: DriverCapture): number {
    const { deviceIndex } = capture as SimulatedCapture
    return this.#driver.begin("cuStreamEndCapture", this.#driver.device(deviceIndex))
  }

  take(): CapturedGraph {
    return captured
  }

  drop(): void {}

  abandon(): void {}

  /** There is no native code to enter for, but the context may be lost. */
  enter(deviceIndex: number): number {
    return this.#driver.begin("cuCtxPushCurrent", this.#driver.device(deviceIndex))
  }

  leave(): void {}

  /** Makes the work ready to be enqueued. Returns the status if that fails. */
  prepare({ reads, simulate, writes }: ForeignWork): Enqueue | number {
    const isThere = [...reads, ...writes].every(({ memory }) => memoryPart(ownMemory(memory)).tryTouch())
    if (!isThere) return statuses.OutOfMemory.code
    const { model } = this.#driver
    if (!model.hasData) return (stream) => model.work(stream, { duration: usualCost })
    const act = () => {
      const result: unknown = this.#run(() => simulate!(reads.map(bytesOf), writes.map(bytesOf)))
      return result instanceof ForeignWait ? this.#guarded(result) : undefined
    }
    return (stream) => enqueueWaiting(model, stream, usualCost, act)
  }

  #run<A>(code: () => A): A {
    return this.#driver.runCode("The function for native code", code)
  }

  /** A wait whose last code explains the fault that it ends in. */
  #guarded({ begin, waitsFor }: ForeignWait): ForeignWait {
    const guarded = (rest: ForeignRest): ForeignRest => ({ ...rest, act: () => this.#run(rest.act) })
    return new ForeignWait(waitsFor, (resume) => this.#run(() => begin((rest) => resume(guarded(rest)))))
  }
}

const bytesOf = ({ byteLength, memory, offset }: MemoryRange): Uint8Array<ArrayBuffer> =>
  memoryPart(ownMemory(memory)).touch().subarray(offset, offset + byteLength)
