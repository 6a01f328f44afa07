/**
 * Recording the nodes of one graph inside another, with values for its parameters.
 */
import * as Effect from "effect/Effect"
import { scalarWriters, setAddress } from "../../cuda/parameters.ts"
import { success } from "../../cuda/status.ts"
import type { CudaError } from "../../CudaError.ts"
import type { GraphPlaceholder, GraphRef, GraphRegionRef, GraphValue, MemoryRange } from "../CudaRuntime.ts"
import { counted } from "../runtime/words.ts"
import { enqueueUsing } from "./accesses.ts"
import type { Transfer } from "./copies.ts"
import type { Core } from "./Core.ts"
import { refuseArgument, refuseDescribed, refuseResource } from "./failures.ts"
import { refuseGraph } from "./graphChecks.ts"
import { refuseValue } from "./graphLaunches.ts"
import { Bindings, GraphResource, GraphScalar, isMemoryParameter } from "./graphNodes.ts"
import type { GraphNode, KernelWork, NodeRange, NodeWork, RecordedScalar } from "./graphNodes.ts"
import type { Refusal } from "./ranges.ts"
import { pointOf } from "./Recording.ts"
import type { EmbeddedNode, Recording } from "./Recording.ts"
import { noRecords, refuseElsewhere, refuseToRecord } from "./recordings.ts"
import { DeviceMemoryResource, ownMemory, unusable } from "./resources.ts"
import type { StreamResource } from "./resources.ts"

type EmbeddedValue = GraphValue | GraphPlaceholder

const embedOperation = "CudaGraph.embed"

export const embed = (
  core: Core,
  graph: GraphRef,
  values: ReadonlyArray<EmbeddedValue>,
  stream: StreamResource
): Effect.Effect<void, CudaError> => {
  const { backend } = core
  if (unusable(backend, stream)) return refuseResource(embedOperation, backend, stream)
  if (!(graph instanceof GraphResource)) return refuseArgument(embedOperation, "graph", graph, "a recorded graph")
  const { recording } = stream
  if (recording === undefined) {
    return refuseDescribed(
      embedOperation,
      "stream",
      String(stream),
      "a stream of a recording: launch the graph instead"
    )
  }
  const refused = refuseElsewhere(embedOperation, stream) ?? refuseGraph(core, embedOperation, graph) ??
    (recording.parent !== undefined && graph.events.length > 0
      ? refuseToRecord(embedOperation, noRecords)
      : undefined) ??
    refuseValues(core, graph, recording, values)
  if (refused !== undefined) return refused
  const inside = new Embedding(graph, recording, values)
  const [reads, writes] = [inside.ranges(graph.reads), inside.ranges(graph.writes)]
  const status = enqueueUsing(core, stream, reads, writes, () => {
    recording.embed(stream, graph.nodes.map((node) => inside.node(node)))
    return success
  }, graph.handles)
  if (status !== success) return core.fail(embedOperation, status, stream)
  for (const event of graph.events) {
    event.inside = pointOf(stream)
    recording.noteEvent(event)
  }
  return Effect.void
}

const refuseValues = (
  core: Core,
  graph: GraphResource,
  recording: Recording,
  values: ReadonlyArray<EmbeddedValue>
): Refusal => {
  const { parameters } = graph
  if (graph.deviceIndex !== recording.deviceIndex) {
    const expected = `a graph of device ${recording.deviceIndex}, like the recording`
    return refuseArgument(embedOperation, "graph", graph, expected)
  }
  if (values.length !== parameters.length) {
    return refuseDescribed(
      embedOperation,
      "values",
      counted(values.length, "value"),
      `${parameters.length}, one per parameter`
    )
  }
  for (const [index, value] of values.entries()) {
    const [name, kind] = parameters[index]!
    if (value instanceof GraphScalar) {
      if (!isMemoryParameter(kind) && kind.kind === value.scalar && value.recording === recording.root) continue
      return refuseArgument(embedOperation, `values.${name}`, value, "a value or a parameter of the same kind")
    }
    const refused = refuseValue(core, embedOperation, graph, index, value)
    if (refused !== undefined) return refused
  }
  return undefined
}

/** A graph as part of another: its memory and its values are those of the embedding. */
class Embedding {
  readonly #bindings: Bindings
  readonly #values: ReadonlyArray<EmbeddedValue>
  readonly #regions = new Map<GraphRegionRef, GraphRegionRef>()

  constructor(graph: GraphResource, recording: Recording, values: ReadonlyArray<EmbeddedValue>) {
    this.#values = values
    this.#bindings = new Bindings(graph)
    for (const [parameter, slot] of graph.slotOf.entries()) {
      const range = values[parameter] as MemoryRange
      if (slot !== undefined) this.#bindings.set(slot, { memory: ownMemory(range.memory), offset: range.offset })
    }
    if (graph.scratchBytes === 0) return
    const memory = recording.allocate(graph.scratchBytes)
    for (const { offset, slot } of graph.scratch) this.#bindings.set(slot, { memory, offset })
  }

  ranges(ranges: ReadonlyArray<NodeRange>): ReadonlyArray<NodeRange> {
    return ranges.map((range) => ({
      ...this.#bindings.locate(range.memory, range.offset),
      byteLength: range.byteLength
    }))
  }

  node({ dependencies, inside, name, operation, reads, stack, work, writes }: GraphNode): EmbeddedNode {
    const own = this.#work(work)
    return {
      dependencies,
      inside,
      name,
      operation,
      stack,
      work: own,
      reads: this.ranges(reads),
      writes: this.ranges(writes)
    }
  }

  #work(work: NodeWork): NodeWork {
    switch (work.kind) {
      case "kernel":
        return this.#kernel(work)
      case "fill": {
        const { memory, offset } = this.#bindings.locate(work.memory, work.offset)
        return memory instanceof DeviceMemoryResource ? { ...work, memory, offset } : work
      }
      case "copy":
        return { kind: "copy", transfer: this.#transfer(work.transfer) }
      case "copy2D":
        return { kind: "copy2D", transfer: this.#transfer(work.transfer) }
      case "conditional":
        return { ...work, value: this.ranges([work.value])[0]! }
      case "mark":
        return { ...work, region: this.#region(work.region) }
      case "graph":
      case "record":
        return work
    }
  }

  /** A region is another one wherever it is embedded. */
  #region(region: GraphRegionRef): GraphRegionRef {
    const known = this.#regions.get(region)
    if (known !== undefined) return known
    const own = { ...region }
    this.#regions.set(region, own)
    return own
  }

  #transfer<T extends Pick<Transfer, "to" | "toOffset" | "from" | "fromOffset">>(transfer: T): T {
    const to = this.#bindings.locate(transfer.to, transfer.toOffset)
    const from = this.#bindings.locate(transfer.from, transfer.fromOffset)
    return { ...transfer, to: to.memory, toOffset: to.offset, from: from.memory, fromOffset: from.offset }
  }

  #kernel(work: KernelWork): KernelWork {
    const bytes = work.bytes.slice()
    const view = new DataView(bytes.buffer)
    const pointers = work.pointers.map((pointer) => {
      if (pointer.memory === undefined) return pointer
      const located = this.#bindings.locate(pointer.memory, pointer.offset)
      setAddress(view, pointer.at, located.memory.address + located.offset)
      return { ...pointer, ...located }
    })
    const scalars: Array<RecordedScalar> = []
    for (const scalar of work.scalars) {
      const value = this.#values[scalar.index]
      if (value instanceof GraphScalar) scalars.push({ ...scalar, index: value.index })
      else scalarWriters[scalar.scalar](view, scalar.at)(value)
    }
    return { ...work, bytes, pointers, scalars }
  }
}
