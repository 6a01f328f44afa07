/**
 * Graphs, in the runtime service: recording a program on streams that record, and replaying it.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { ElementType, ScalarKind, ScalarName } from "../../cuda/parameters.ts"
import type { CudaError } from "../../CudaError.ts"
import type { EventRef } from "./events.ts"
import type { LibraryHandleRef } from "./libraries.ts"
import type { DeviceMemoryOptions, DeviceMemoryRef, MemoryRange, MemoryRef } from "./memory.ts"
import type { PartitionRef } from "./partitions.ts"
import type { ResourceState } from "./resources.ts"
import type { StreamOptions, StreamRef } from "./streams.ts"

/**
 * Memory that every launch of a graph is given.
 *
 * @category models
 * @since 0.1.0
 */
export interface GraphMemoryParameter<
  out Kind extends "device" | "host" = "device" | "host",
  out Element extends ElementType | undefined = ElementType | undefined
> {
  readonly parameter: Kind
  /** The type of its elements, if it was declared. */
  readonly element: Element
  /** The bytes that the graph uses. A launch may be given more. */
  readonly byteLength: number
  /** Whether its uses on different streams of the recording are ordered automatically. Default: false. */
  readonly ordered?: boolean | undefined
}

/**
 * What a graph can be given at each launch: device memory, pinned memory, or a number or boolean argument of kernels.
 *
 * @category models
 * @since 0.1.0
 */
export type GraphParameter = GraphMemoryParameter | ScalarKind

/**
 * Stands for a parameter while a graph is recorded: a reference to memory, or the argument of a launch.
 *
 * @category models
 * @since 0.1.0
 */
export type GraphPlaceholder = MemoryRef | GraphScalarRef

/**
 * Stands for a number or a boolean in the arguments of a recorded launch.
 *
 * @category models
 * @since 0.1.0
 */
export interface GraphScalarRef<out Name extends ScalarName = ScalarName> {
  readonly scalar: Name
  /** The name of the parameter. */
  readonly name: string
}

/**
 * The value of a parameter: a range of memory, or a number, `bigint` or boolean.
 *
 * @category models
 * @since 0.1.0
 */
export type GraphValue = MemoryRange | number | bigint | boolean

/**
 * Options for recording a graph.
 *
 * @category models
 * @since 0.1.0
 */
export interface RecordOptions {
  readonly deviceIndex: number
  readonly parameters: ReadonlyArray<readonly [name: string, kind: GraphParameter]>
  /**
   * Whether the graph may write pinned memory that it also reads, so that a launch reads what an earlier one wrote.
   * Default: false.
   */
  readonly overwriteInputs?: boolean | undefined
  /** The partition that the program begins in. Default: none. */
  readonly partition?: PartitionRef | undefined
}

/**
 * A recording in progress.
 *
 * @category models
 * @since 0.1.0
 */
export interface RecordingRef {
  readonly deviceIndex: number
  /** The stream on which the recorded program starts and ends. */
  readonly stream: StreamRef
  /** What stands for each parameter, in order. */
  readonly placeholders: ReadonlyArray<GraphPlaceholder>
  readonly state: "recording" | "ended"
}

/**
 * A node of a graph: one operation of the recorded program.
 *
 * @category models
 * @since 0.1.0
 */
export interface GraphNodeRef {
  /** The position in the order of recording. */
  readonly index: number
  readonly kind: "kernel" | "copy" | "copy2D" | "fill" | "record" | "conditional" | "graph" | "mark"
  /** For a node in the body of a condition: the index of the conditional node, and which of its bodies. */
  readonly inside: { readonly nodeIndex: number; readonly body: number } | undefined
  /** The name given by `CudaGraph.named`, otherwise that of the kernel or of the operation. */
  readonly name: string
  /** The operation that was recorded, for example `CudaMemory.copy`. */
  readonly operation: string
  /** The innermost span or named function around the operation, and where it is in the source. */
  readonly frame: string | undefined
  /** The indices of the nodes that must finish first, without those that follow from others. */
  readonly dependencies: ReadonlyArray<number>
  readonly reads: ReadonlyArray<MemoryRange>
  readonly writes: ReadonlyArray<MemoryRange>
}

/**
 * What work of simulated devices does once it has waited.
 *
 * @category models
 * @since 0.1.0
 */
export interface ForeignRest {
  /** The time it takes, beside that of its bytes. */
  readonly nanoseconds: number
  /** The bytes it moves between devices, at their bandwidth. */
  readonly linkBytes: number
  /** Called at its end. */
  readonly act: () => void
}

/**
 * Work of simulated devices that waits for something outside its stream, such as the same work on other streams.
 *
 * @category models
 * @since 0.1.0
 */
export class ForeignWait {
  /** What it waits for, in words, for failures of waits that can never end. */
  readonly waitsFor: string
  /** Called at once, with the function to call when the wait is over. */
  readonly begin: (resume: (rest: ForeignRest) => void) => void
  constructor(waitsFor: string, begin: ForeignWait["begin"]) {
    this.waitsFor = waitsFor
    this.begin = begin
  }
}

/**
 * What work of other native code does on simulated devices, with the bytes that it reads and writes. Work that has to wait first returns
 * a `ForeignWait`, and the stream waits as well.
 *
 * @category models
 * @since 0.1.0
 */
export type ForeignSimulation = (
  reads: ReadonlyArray<Uint8Array<ArrayBuffer>>,
  writes: ReadonlyArray<Uint8Array<ArrayBuffer>>
) => void

/**
 * Work that other native code enqueues.
 *
 * @category models
 * @since 0.1.0
 */
export interface ForeignWork {
  readonly reads: ReadonlyArray<MemoryRange>
  readonly writes: ReadonlyArray<MemoryRange>
  /** What stands in for it on simulated devices, which cannot run native code. */
  readonly simulate: ForeignSimulation | undefined
  /** The handles of libraries that it uses. */
  readonly handles?: ReadonlyArray<LibraryHandleRef> | undefined
}

/**
 * A time in which other native code enqueues work.
 *
 * @category models
 * @since 0.1.0
 */
export interface CaptureRef {
  /** The stream on which it becomes part of the program. */
  readonly stream: StreamRef
  /** The `CUstream` to enqueue it on; undefined on simulated devices. */
  readonly handle: number | undefined
}

/**
 * How a condition chooses what runs. `while` repeats its only body while the value is not 0. `when` runs the first body if the value is
 * not 0, and otherwise the second, if there is one. `match` runs the body with the index that the value is, if there is one.
 *
 * @category models
 * @since 0.1.0
 */
export type GraphCondition = "while" | "when" | "match"

/**
 * A region of a recorded program. A node of the kind `mark` is where it begins, and another where it ends.
 *
 * @category models
 * @since 0.1.0
 */
export interface GraphRegionRef {
  readonly name: string
  readonly attributes: Readonly<Record<string, string | number | boolean>>
}

/**
 * A recorded graph. It holds nothing in the driver.
 *
 * @category models
 * @since 0.1.0
 */
export interface GraphRef {
  readonly deviceIndex: number
  readonly nodes: ReadonlyArray<GraphNodeRef>
  readonly parameters: ReadonlyArray<readonly [name: string, kind: GraphParameter]>
  /** Bytes of memory for the buffers allocated in the program. Each instance has its own. */
  readonly scratchBytes: number
  /** The regions that a launch can measure, in the order in which they end. */
  readonly regions: ReadonlyArray<GraphRegionRef>
  /** The number of regions that no launch can measure: those in bodies of conditions, and those that never ended. */
  readonly unmeasured: number
}

/**
 * A graph that can be launched.
 *
 * @category models
 * @since 0.1.0
 */
export interface GraphExecRef {
  /** The graph it was made from, or last updated to. */
  readonly graph: GraphRef
  readonly deviceIndex: number
  /** Launches that can run at the same time. */
  readonly instances: number
  readonly state: ResourceState
}

/**
 * Operations that record and replay graphs.
 *
 * @category models
 * @since 0.1.0
 */
export interface GraphOperations {
  /** Begins a recording on a device. Makes no driver call. */
  readonly graphRecord: (options: RecordOptions) => Effect.Effect<RecordingRef, CudaError>
  /** Creates a stream of a recording. */
  readonly graphStream: (recording: RecordingRef, options: StreamOptions) => Effect.Effect<StreamRef, CudaError>
  /** Allocates memory of a graph: every instance has its own, reused where the order of the nodes allows it. */
  readonly graphAllocate: (
    recording: RecordingRef,
    deviceIndex: number,
    byteLength: number,
    options?: DeviceMemoryOptions
  ) => Effect.Effect<DeviceMemoryRef, CudaError>
  /** Records the nodes of another graph, with values for its parameters. */
  readonly graphEmbed: (
    graph: GraphRef,
    values: ReadonlyArray<GraphValue | GraphPlaceholder>,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /**
   * Loads the kernel that conditions need on a device, unless it is there. Waits until the device is idle, because otherwise the call
   * blocks.
   */
  readonly graphPrepareConditions: (deviceIndex: number) => Effect.Effect<void, CudaError>
  /** Begins to record a body of a condition, to be launched on a stream of a recording. */
  readonly graphBody: (stream: StreamRef) => Effect.Effect<RecordingRef, CudaError>
  /**
   * Ends the bodies, and records a node that runs them depending on a value of 32 bits in device memory
   * (`cuGraphConditionalHandleCreate`).
   */
  readonly graphCondition: (
    condition: GraphCondition,
    value: MemoryRange,
    bodies: ReadonlyArray<RecordingRef>,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /**
   * Lets other native code enqueue work on a stream. In a recording, the driver captures it on a stream of its own
   * (`cuStreamBeginCapture`).
   */
  readonly graphCapture: (work: ForeignWork, stream: StreamRef) => Effect.Effect<CaptureRef, CudaError>
  /** Ends it (`cuStreamEndCapture`). In a recording, the captured work becomes a node. */
  readonly graphEndCapture: (capture: CaptureRef) => Effect.Effect<void, CudaError>
  /** Ends it after a failure. In a recording, the captured work is dropped. */
  readonly graphAbandonCapture: (capture: CaptureRef) => Effect.Effect<void, CudaError>
  /** Records where a region begins or ends. The node does nothing, except in launches that measure regions. */
  readonly graphMark: (
    region: GraphRegionRef,
    end: "begin" | "end",
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /** Ends a recording, and checks that its streams are joined. */
  readonly graphEnd: (recording: RecordingRef) => Effect.Effect<GraphRef, CudaError>
  /** Ends a recording whose program failed or was interrupted. */
  readonly graphAbandon: (recording: RecordingRef) => Effect.Effect<void, CudaError>
  /**
   * Makes a graph executable (`cuGraphInstantiateWithParams`), a number of times. For copies from or to other devices, makes the pools of
   * that memory accessible to the graph's device (`cuMemPoolSetAccess`).
   */
  readonly graphInstantiate: (graph: GraphRef, instances: number) => Effect.Effect<GraphExecRef, CudaError>
  /** Destroys an executable graph (`cuGraphExecDestroy`). Launches in progress go on. */
  readonly graphDestroy: (exec: GraphExecRef) => Effect.Effect<void, CudaError>
  /** Moves what a graph needs to the device ahead of the first launch (`cuGraphUpload`). */
  readonly graphUpload: (exec: GraphExecRef, stream: StreamRef) => Effect.Effect<void, CudaError>
  /** Launches a graph with a value for each parameter (`cuGraphLaunch`). */
  readonly graphLaunch: (
    exec: GraphExecRef,
    values: ReadonlyArray<GraphValue>,
    stream: StreamRef
  ) => Effect.Effect<void, CudaError>
  /**
   * Launches a graph, and records an event where each of its regions begins and another where it ends
   * (`cuGraphExecEventRecordNodeSetEvent`). Returns false if that is impossible, for example because the graph has another number of
   * regions, and the graph was launched without.
   */
  readonly graphMeasure: (
    exec: GraphExecRef,
    values: ReadonlyArray<GraphValue>,
    events: ReadonlyArray<readonly [begin: EventRef, end: EventRef]>,
    stream: StreamRef
  ) => Effect.Effect<boolean, CudaError>
  /** Makes later launches run another graph with the same nodes and edges (`cuGraphExecUpdate`). */
  readonly graphUpdate: (exec: GraphExecRef, graph: GraphRef) => Effect.Effect<void, CudaError>
  /** Makes later launches run another graph, instantiated anew. */
  readonly graphReplace: (exec: GraphExecRef, graph: GraphRef) => Effect.Effect<void, CudaError>
  /** Enables or disables a node in later launches (`cuGraphNodeSetEnabled`). */
  readonly graphSetEnabled: (
    exec: GraphExecRef,
    nodeIndex: number,
    enabled: boolean
  ) => Effect.Effect<void, CudaError>
}

/**
 * The recording that an effect is part of.
 *
 * **Example** (Whether a program is being recorded)
 *
 * ```ts
 * import { CudaRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const isRecording = Effect.map(CudaRuntime.CurrentRecording, (recording) => recording !== undefined)
 * ```
 *
 * @category references
 * @since 0.1.0
 */
export const CurrentRecording = Context.Reference<RecordingRef | undefined>("effect-cuda/CurrentRecording", {
  defaultValue: () => undefined
})

/**
 * The name of the nodes that an effect records.
 *
 * **Example** (The name of the next node)
 *
 * ```ts
 * import { CudaRuntime } from "effect-cuda"
 * import * as Effect from "effect/Effect"
 *
 * const name = Effect.map(CudaRuntime.CurrentNodeName, (current) => current ?? "unnamed")
 * ```
 *
 * @category references
 * @since 0.1.0
 */
export const CurrentNodeName = Context.Reference<string | undefined>("effect-cuda/CurrentNodeName", {
  defaultValue: () => undefined
})
