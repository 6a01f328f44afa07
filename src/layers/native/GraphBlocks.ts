/**
 * The structs of graph nodes, in memory whose address is taken once: a call with an address costs less than one with a typed array.
 * The driver copies what they contain.
 */
import { graphNodeTypes, launchAttributes, memoryTypes, programmaticEdge } from "../../cuda/flags.ts"
import { nullHandle, offsetBy } from "../../cuda/handles.ts"
import type { CUcontext, CUdeviceptr, CUgraphNode, CUkernel, HostPointer } from "../../cuda/handles.ts"
import type { DriverLibrary } from "../../cuda/library.ts"
import { scalarWriters, setAddress, twoTo32 } from "../../cuda/parameters.ts"
import type { RowsTransfer } from "../shared/copies.ts"
import type { Bindings, GraphResource, KernelWork, Located, RecordedShape } from "../shared/graphNodes.ts"
import type { AnyMemoryResource } from "../shared/resources.ts"

/** Memory at a fixed address, in words of 32 bits. */
class Block {
  readonly address: HostPointer
  protected readonly words: Uint32Array<ArrayBuffer>
  constructor(library: DriverLibrary, words: number) {
    this.words = new Uint32Array(words)
    this.address = library.addressOf(this.words.buffer)
  }

  /** Writes an address or a size: two words. */
  protected setWide(at: number, value: number): void {
    this.words[at] = value
    this.words[at + 1] = value / twoTo32
  }
}

/** Word offsets in a `CUDA_MEMCPY3D`: of one end from its start, and of the extent. */
const end = { type: 8, host: 10, device: 12, pitch: 18, height: 20, words: 22 } as const
const extent = { width: 44, height: 46, depth: 48, words: 50 } as const

/** `CUDA_MEMCPY3D`. */
export class CopyBlock extends Block {
  constructor(library: DriverLibrary) {
    super(library, extent.words)
    this.words[extent.depth] = 1
  }

  write({ from, fromOffset, fromPitch, height, to, toOffset, toPitch, width }: RowsTransfer): void {
    this.#writeEnd(0, from, fromOffset, fromPitch, height)
    this.#writeEnd(end.words, to, toOffset, toPitch, height)
    this.setWide(extent.width, width)
    this.setWide(extent.height, height)
  }

  #writeEnd(start: number, memory: AnyMemoryResource, offset: number, pitch: number, height: number): void {
    const address = memory.address + offset
    this.words[start + end.type] = memoryTypes[memory.kind]
    this.setWide(start + end.host, memory.kind === "host" ? address : 0)
    this.setWide(start + end.device, memory.kind === "host" ? 0 : address)
    this.setWide(start + end.pitch, pitch)
    this.setWide(start + end.height, height)
  }
}

/** `CUDA_MEMSET_NODE_PARAMS` of one row. */
export class FillBlock extends Block {
  constructor(library: DriverLibrary) {
    super(library, 10)
    this.setWide(8, 1)
  }

  write(to: CUdeviceptr, value: number, bits: 8 | 16 | 32, count: number): void {
    this.setWide(0, to)
    this.words[4] = value
    this.words[5] = bits / 8
    this.setWide(6, count)
  }
}

/** `CUlaunchAttributeValue`. */
export class AttributeBlock extends Block {
  constructor(library: DriverLibrary) {
    super(library, 16)
  }

  write(...values: ReadonlyArray<number>): void {
    this.words.fill(0)
    this.words.set(values)
  }
}

/** The attributes of a launch that a kernel node has: their ids and values. */
export const attributesOf = ({ priority, shape }: KernelWork): ReadonlyArray<readonly [number, Array<number>]> => {
  const attributes: Array<readonly [number, Array<number>]> = []
  if (shape.cooperative) attributes.push([launchAttributes.cooperative, [1]])
  if (shape.clustered) attributes.push([launchAttributes.clusterDimension, clusterOf(shape)])
  if (priority !== 0) attributes.push([launchAttributes.priority, [priority]])
  return attributes
}

const clusterOf = ({ clusterX, clusterY, clusterZ }: RecordedShape): Array<number> => [clusterX, clusterY, clusterZ]

/** Where the driver writes a new node, and what the node is connected with. */
export class EdgeBlock extends Block {
  constructor(library: DriverLibrary, room: number) {
    super(library, edgeWords + 2 * room)
    const bytes = new Uint8Array(this.words.buffer)
    bytes[8] = programmaticEdge.fromPort
    bytes[9] = programmaticEdge.toPort
    bytes[10] = programmaticEdge.type
  }

  /** How many dependencies fit. */
  get room(): number {
    return (this.words.length - edgeWords) / 2
  }

  /** The new node. */
  get node(): CUgraphNode {
    return (this.words[1]! * twoTo32 + this.words[0]!) as CUgraphNode
  }

  /** The address of the `CUgraphEdgeData` of a programmatic edge. */
  get edge(): HostPointer {
    return offsetBy(this.address, 8)
  }

  get dependencies(): HostPointer {
    return offsetBy(this.address, 4 * edgeWords)
  }

  write(dependencies: ReadonlyArray<CUgraphNode>): void {
    for (let index = 0; index < dependencies.length; index++) {
      this.setWide(edgeWords + 2 * index, dependencies[index]!)
    }
  }
}

/** The words of an `EdgeBlock` before its dependencies: the new node, and the data of an edge. */
const edgeWords = 4

/**
 * Byte offsets in a `CUDA_KERNEL_NODE_PARAMS_v2`. The kernel is a `CUkernel`, with its context: a `CUfunction` is changed 40 ns faster, but
 * without a current context that crashes the process (driver 580.159).
 */
const kernelAt = { grid: 8, block: 20, sharedBytes: 32, table: 40, kernel: 56, context: 64, size: 72 } as const

/** The bytes of a launch: its `CUDA_KERNEL_NODE_PARAMS_v2`, its arguments, and the table of their addresses. */
const bytesOf = ({ bytes, kernel }: KernelWork): number =>
  kernelAt.size + roundUp(bytes.byteLength) + 8 * kernel.arguments.offsets.length

const roundUp = (bytes: number): number => Math.ceil(bytes / 8) * 8

/** Writes a launch at `start`, which has this address, with its arguments as they were recorded. */
const writeLaunch = (
  view: DataView,
  start: number,
  address: number,
  { bytes, kernel, partition, shape }: KernelWork,
  context: CUcontext
): void => {
  const { offsets } = kernel.arguments
  const table = kernelAt.size + roundUp(bytes.byteLength)
  write32(view, start + kernelAt.grid, shape.gridX, shape.gridY, shape.gridZ)
  write32(view, start + kernelAt.block, shape.blockX, shape.blockY, shape.blockZ)
  write32(view, start + kernelAt.sharedBytes, shape.sharedBytes)
  setAddress(view, start + kernelAt.table, offsets.length === 0 ? 0 : address + table)
  setAddress(view, start + kernelAt.kernel, kernel.handle)
  setAddress(view, start + kernelAt.context, partition?.handle ?? context)
  new Uint8Array(view.buffer, start + kernelAt.size, bytes.byteLength).set(bytes)
  offsets.forEach((offset, index) => setAddress(view, start + table + 8 * index, address + kernelAt.size + offset))
}

/** One launch after another. */
export class KernelBlock {
  address = nullHandle<HostPointer>()
  readonly #library: DriverLibrary
  readonly #context: CUcontext
  #view = new DataView(new ArrayBuffer(0))

  constructor(library: DriverLibrary, context: CUcontext) {
    this.#library = library
    this.#context = context
  }

  /** Writes a launch with its arguments as they are bound. The address may change. */
  write(work: KernelWork, bindings: Bindings): void {
    const size = bytesOf(work)
    if (size > this.#view.byteLength) {
      const buffer = new ArrayBuffer(2 * size)
      this.#view = new DataView(buffer)
      this.address = this.#library.addressOf(buffer)
    }
    writeLaunch(this.#view, 0, this.address, work, this.#context)
    bindings.writeBound(work.pointers, work.scalars, this.#view, kernelAt.size)
  }
}

/** Writes a scalar into the launches that use it. */
type WriteScalar = (value: unknown) => boolean

/**
 * The launches of an instance that parameters change, and where the parameters are in them. All of it lies side by side: binding goes from
 * node to node, and the driver's calls leave nothing in the cache.
 */
export class KernelBlocks {
  readonly #words: Uint32Array
  readonly #slotOf: GraphResource["slotOf"]
  /** By parameter of memory: pairs of the position of an address in the words, and its offset from the beginning of the memory. */
  readonly #pointers: ReadonlyArray<Float64Array>
  readonly #scalars: ReadonlyArray<ReadonlyArray<WriteScalar>>

  /** Writes the launches with their arguments as they are bound, and their addresses into `places`: see `NativeInstance`. */
  constructor(
    library: DriverLibrary,
    graph: GraphResource,
    bindings: Bindings,
    context: CUcontext,
    places: Float64Array
  ) {
    const works = launchesOf(graph)
    const buffer = new ArrayBuffer(works.reduce((bytes, [, work]) => bytes + bytesOf(work), 0))
    const view = new DataView(buffer)
    const address = buffer.byteLength === 0 ? 0 : library.addressOf(buffer)
    const pointers: Array<Array<number>> = graph.parameters.map(() => [])
    const scalars: Array<Array<WriteScalar>> = graph.parameters.map(() => [])
    let start = 0
    for (const [index, work] of works) {
      const first = start + kernelAt.size
      places[2 * index + 1] = address + start
      writeLaunch(view, start, address + start, work, context)
      bindings.writeBound(work.pointers, work.scalars, view, first)
      for (const { at, memory, offset } of work.pointers) {
        const slot = memory?.slot?.index
        if (slot !== undefined) pointers[graph.slotOf.indexOf(slot)]?.push((first + at) / 4, offset)
      }
      for (const { at, index, scalar } of work.scalars) scalars[index]!.push(scalarWriters[scalar](view, first + at))
      start += bytesOf(work)
    }
    this.#words = new Uint32Array(buffer)
    this.#slotOf = graph.slotOf
    this.#pointers = pointers.map((pairs) => Float64Array.from(pairs))
    this.#scalars = scalars
  }

  /** Writes the values of some parameters. */
  write(bindings: Bindings, parameters: ReadonlyArray<number>): void {
    for (let index = 0; index < parameters.length; index++) {
      const parameter = parameters[index]!
      const slot = this.#slotOf[parameter]
      if (slot === undefined) this.#writeScalar(parameter, bindings.scalars[parameter])
      else this.#writeAddress(this.#pointers[parameter]!, bindings.get(slot)!)
    }
  }

  #writeAddress(pointers: Float64Array, { memory, offset }: Located): void {
    const base = memory.address + offset
    const words = this.#words
    for (let index = 0; index < pointers.length; index += 2) {
      const at = pointers[index]!
      const address = base + pointers[index + 1]!
      words[at] = address
      words[at + 1] = address / twoTo32
    }
  }

  #writeScalar(parameter: number, value: unknown): void {
    const writers = this.#scalars[parameter]!
    for (let index = 0; index < writers.length; index++) writers[index]!(value)
  }
}

/** The launches that parameters change, with the indices of their nodes. */
const launchesOf = ({ nodes, usersOf }: GraphResource): ReadonlyArray<readonly [index: number, work: KernelWork]> =>
  Array.from(new Set(usersOf.flat())).flatMap((index) => {
    const { work } = nodes[index]!
    return work.kind === "kernel" ? [[index, work] as const] : []
  })

/** A kernel that passes a value in memory to a condition: it compares the value with a number. */
export interface Setter {
  readonly node: CUgraphNode
  readonly kernel: CUkernel
  /** The `CUgraphConditionalHandle`. */
  readonly condition: bigint
  readonly expected: number
  /** True if the condition holds when the value differs from the number. */
  readonly negated: boolean
}

/** Byte offsets of the arguments of a setter, after its `CUDA_KERNEL_NODE_PARAMS_v2`, and of the table of their addresses. */
const setterAt = { condition: 72, value: 80, expected: 88, negated: 92, table: 96, size: 128 } as const

/** `CUDA_KERNEL_NODE_PARAMS_v2` of a setter, followed by its arguments and the table of their addresses. */
export class SetterBlock {
  readonly address: HostPointer
  readonly #view = new DataView(new ArrayBuffer(setterAt.size))
  constructor(library: DriverLibrary) {
    const view = this.#view
    this.address = library.addressOf(view.buffer)
    write32(view, kernelAt.grid, 1, 1, 1)
    write32(view, kernelAt.block, 1, 1, 1)
    setAddress(view, kernelAt.table, this.address + setterAt.table)
    const { condition, expected, negated, value } = setterAt
    for (const [index, at] of [condition, value, expected, negated].entries()) {
      setAddress(view, setterAt.table + 8 * index, this.address + at)
    }
  }

  write({ condition, expected, kernel, negated }: Omit<Setter, "node">, context: CUcontext, value: number): void {
    const view = this.#view
    setAddress(view, kernelAt.kernel, kernel)
    setAddress(view, kernelAt.context, context)
    view.setBigUint64(setterAt.condition, condition, true)
    setAddress(view, setterAt.value, value)
    view.setUint32(setterAt.expected, expected, true)
    view.setUint32(setterAt.negated, negated ? 1 : 0, true)
  }
}

/** `CUgraphNodeParams` of a conditional node, and a `CUgraphConditionalHandle`. */
export class ConditionBlock {
  readonly address: HostPointer
  readonly #view = new DataView(new ArrayBuffer(264))
  constructor(library: DriverLibrary) {
    this.address = library.addressOf(this.#view.buffer)
  }

  /** Where the driver writes the handle. */
  get handleAddress(): HostPointer {
    return offsetBy(this.address, 256)
  }

  get handle(): bigint {
    return this.#view.getBigUint64(256, true)
  }

  /** The address of the array of bodies, which the driver owns. */
  get bodies(): number {
    return Number(this.#view.getBigUint64(32, true))
  }

  write(handle: bigint, type: number, context: CUcontext): void {
    const view = this.#view
    new Uint8Array(view.buffer, 0, 256).fill(0)
    view.setUint32(0, graphNodeTypes.conditional, true)
    view.setBigUint64(16, handle, true)
    view.setUint32(24, type, true)
    view.setUint32(28, 1, true)
    setAddress(view, 40, context)
  }
}

const write32 = (view: DataView, at: number, ...values: ReadonlyArray<number>): void => {
  values.forEach((value, index) => view.setUint32(at + 4 * index, value, true))
}
