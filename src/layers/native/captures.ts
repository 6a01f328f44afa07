/**
 * Captures on the driver: each has a stream of its own, in relaxed mode, so that nothing else in the process can disturb it. What was
 * captured is destroyed when no graph holds it any more, or when the runtime is closed.
 */
import { captureModes, graphNodeTypes } from "../../cuda/flags.ts"
import type { CUgraph, CUgraphNode, CUstream } from "../../cuda/handles.ts"
import { success } from "../../cuda/status.ts"
import type { CaptureBackend, CapturedGraph, DriverCapture } from "../shared/captures.ts"
import type { PartitionResource } from "../shared/resources.ts"
import { Out } from "./Device.ts"
import type { Driver } from "./Driver.ts"
import { greenOf } from "./partitions.ts"

class NativeCapture implements DriverCapture {
  readonly handle: CUstream
  constructor(handle: CUstream) {
    this.handle = handle
  }
}

export class NativeCaptured implements CapturedGraph {
  readonly handle: CUgraph
  readonly nodes: number
  readonly allocates: boolean
  constructor(handle: CUgraph, types: ReadonlyArray<number>) {
    this.handle = handle
    this.nodes = types.length
    this.allocates = types.some((type) => type === graphNodeTypes.allocate || type === graphNodeTypes.free)
  }
}

/** Narrows a capture. All captures of the native runtime are native. */
const nativeCapture = (capture: DriverCapture): NativeCapture => capture as NativeCapture

export class NativeCaptures implements CaptureBackend {
  readonly simulate = undefined
  begun: NativeCapture | undefined
  #captured: NativeCaptured | undefined
  readonly #driver: Driver
  readonly #open = new Set<NativeCapture>()
  readonly #graphs = new Set<CUgraph>()
  readonly #unused = new FinalizationRegistry<CUgraph>((graph) => this.#drop(graph))
  readonly #graph = new Out<CUgraph>()
  readonly #type = new Int32Array(1)
  readonly #count = new Out()

  constructor(driver: Driver) {
    this.#driver = driver
  }

  begin(deviceIndex: number, priority: number, partition: PartitionResource | undefined): number {
    const { calls, warn } = this.#driver
    const device = this.#driver.device(deviceIndex)
    const stream = partition === undefined
      ? device.makeStream(priority)
      : device.makeStreamIn(greenOf(partition), priority)
    if (stream === undefined) return this.#driver.madeBy(device)
    const status = calls.cuStreamBeginCapture_v2(stream, captureModes.relaxed)
    if (status === success) this.#open.add(this.begun = new NativeCapture(stream))
    else warn("cuStreamDestroy", calls.cuStreamDestroy_v2(stream), stream)
    return this.#driver.answer("cuStreamBeginCapture", status)
  }

  end(capture: DriverCapture): number {
    const status = this.#finish(nativeCapture(capture))
    if (status !== success) return this.#driver.answer("cuStreamEndCapture", status)
    const graph = this.#graph.value
    const types = this.#typesOf(graph)
    if (typeof types !== "number") {
      const captured = this.#captured = new NativeCaptured(graph, types)
      this.#graphs.add(graph)
      this.#unused.register(captured, graph)
      return success
    }
    this.#destroy(graph)
    return types
  }

  /** Ends a capture, and destroys its stream. The driver makes no graph if this fails. */
  #finish(capture: NativeCapture): number {
    const { calls, warn } = this.#driver
    const { handle } = capture
    this.#open.delete(capture)
    this.#graph.words.fill(0)
    const status = calls.cuStreamEndCapture(handle, this.#graph.words)
    warn("cuStreamDestroy", calls.cuStreamDestroy_v2(handle), handle)
    return status
  }

  /** The types of the nodes, or a status. */
  #typesOf(graph: CUgraph): ReadonlyArray<number> | number {
    const { calls } = this.#driver
    let nodes: BigUint64Array
    let room = 128
    do {
      room *= 2
      nodes = new BigUint64Array(room)
      this.#count.words.set([room, 0])
      const status = calls.cuGraphGetNodes(graph, nodes, this.#count.words)
      if (status !== success) return this.#driver.answer("cuGraphGetNodes", status)
    } while (this.#count.value >= room)
    const types: Array<number> = []
    for (const node of nodes.subarray(0, this.#count.value)) {
      const status = calls.cuGraphNodeGetType(Number(node) as CUgraphNode, this.#type)
      if (status !== success) return this.#driver.answer("cuGraphNodeGetType", status)
      types.push(this.#type[0]!)
    }
    return types
  }

  /** Keeps no reference, because graphs decide how long it lives. */
  take(): CapturedGraph {
    const captured = this.#captured!
    this.#captured = undefined
    return captured
  }

  drop(captured: CapturedGraph): void {
    this.#drop((captured as NativeCaptured).handle)
  }

  abandon(capture: DriverCapture): void {
    if (!this.#open.has(nativeCapture(capture))) return
    const status = this.#finish(nativeCapture(capture))
    this.#driver.note(status)
    if (this.#graph.value !== 0) this.#destroy(this.#graph.value)
  }

  enter(deviceIndex: number): number {
    return this.#driver.answer("cuCtxPushCurrent", this.#driver.device(deviceIndex).enter())
  }

  leave(deviceIndex: number): void {
    this.#driver.device(deviceIndex).leave()
  }

  #drop(graph: CUgraph): void {
    if (this.#graphs.delete(graph)) this.#destroy(graph)
  }

  #destroy(graph: CUgraph): void {
    const { calls, warn } = this.#driver
    warn("cuGraphDestroy", calls.cuGraphDestroy(graph), graph)
  }

  /** Ends the captures in progress, and destroys what was captured. */
  close(): void {
    for (const capture of this.#open) this.abandon(capture)
    for (const graph of this.#graphs) this.#drop(graph)
  }
}
