/**
 * A model of the stub driver's graphs, made from its calls: the kernels of each executable graph, with their arguments, and the memory
 * that was allocated for them.
 */
import { assert } from "@effect/vitest"
import { CudaParameter } from "effect-cuda"
import { argumentBytes } from "./kernels.ts"
import type { DriverCall } from "./stubDriver.ts"
import type { Line } from "./tracing.ts"

/** The bytes of each argument of a kernel. */
export type ArgumentBytes = ReadonlyArray<string>

interface KernelNode {
  readonly node: number
  /** The kernel, its sizes, and its context. */
  readonly config: Line
  readonly args: ArgumentBytes
}

interface Exec {
  kernels: Array<KernelNode>
  /** Whether nothing was refused since its last launch, so that the runtime knows what it holds. */
  isKnown: boolean
}

/** The first values of a call that describes a kernel. */
const configLength = 9

export class DriverGraphs {
  /** By graph, in the order of creation. Those in the bodies of conditions belong to the whole graph. */
  readonly #graphs = new Map<number, Array<KernelNode>>()
  readonly #execs = new Map<number, Exec>()
  /** Addresses, as bytes of an argument. */
  readonly #memory = new Set<string>()
  /** The kernels of the graph that was made last. Graphs are made one after another. */
  #building: Array<KernelNode> = []

  /** Follows calls of the driver. Returns the kernels of each launch, in the order of creation. */
  follow(calls: ReadonlyArray<DriverCall>, where: string): ReadonlyArray<ReadonlyArray<ArgumentBytes>> {
    const launches: Array<ReadonlyArray<ArgumentBytes>> = []
    for (const { args, name, status, times } of calls) {
      if (status !== 0) {
        if (name.includes("NodeSetParams")) this.#exec(args[0]).isKnown = false
      } else if (name === "cuGraphLaunch") {
        const exec = this.#exec(args[0])
        exec.isKnown = true
        const launched = exec.kernels.map((kernel) => kernel.args)
        for (let time = 0; time < times; time++) launches.push(launched)
      } else this.#change(name, args, where)
    }
    return launches
  }

  /** Notes that a launch was refused: the next one of the same executable graph may set all arguments again. */
  noteRefused(): void {
    for (const exec of this.#execs.values()) exec.isKnown = false
  }

  /** Whether an argument is the address of memory that these calls allocated and did not free. */
  hasAllocated(argument: string | undefined): boolean {
    return argument !== undefined && this.#memory.has(argument)
  }

  #change(name: DriverCall["name"], args: Line, where: string): void {
    switch (name) {
      case "cuMemAllocFromPoolAsync":
        this.#memory.add(addressBytes(args[0]))
        return
      case "cuMemFreeAsync":
        this.#memory.delete(addressBytes(args[0]))
        return
      case "cuGraphCreate":
        this.#building = []
        this.#graphs.set(Number(args[0]), this.#building)
        return
      case "cuGraphAddKernelNode_v2":
        this.#building.push(kernelNode(args.at(-1), args.slice(0, -3)))
        return
      case "cuGraphInstantiateWithParams":
        this.#execs.set(Number(args.at(-1)), { kernels: [...this.#graph(args[0])], isKnown: false })
        return
      case "cuGraphExecKernelNodeSetParams_v2":
        return this.#set(this.#exec(args[0]), kernelNode(args[1], args.slice(2)), where)
      case "cuGraphExecUpdate_v2":
        return this.#update(this.#exec(args[0]), this.#graph(args[1]))
    }
  }

  #graph(handle: number | string | undefined): Array<KernelNode> {
    return this.#graphs.get(Number(handle))!
  }

  #exec(handle: number | string | undefined): Exec {
    return this.#execs.get(Number(handle))!
  }

  /** Only arguments change, and those of a known graph are not set again. */
  #set({ isKnown, kernels }: Exec, kernel: KernelNode, where: string): void {
    const index = kernels.findIndex(({ node }) => node === kernel.node)
    const before = kernels[index]
    assert.deepStrictEqual(kernel.config, before?.config, `${where}: the configuration of a kernel`)
    if (isKnown) assert.notDeepEqual(kernel.args, before?.args, `${where}: a kernel has these arguments already`)
    kernels[index] = kernel
  }

  /** The driver pairs the nodes in the order of creation. The executable graph keeps its own nodes. */
  #update(exec: Exec, graph: ReadonlyArray<KernelNode>): void {
    assert.lengthOf(graph, exec.kernels.length)
    exec.kernels = exec.kernels.map(({ node }, index) => ({ ...graph[index]!, node }))
    exec.isKnown = false
  }
}

/** A kernel node, and what a call says of it: its configuration, and its arguments. */
const kernelNode = (node: number | string | undefined, description: Line): KernelNode => ({
  node: Number(node),
  config: description.slice(0, configLength),
  args: description.slice(configLength).map(String)
})

const addressBytes = (address: number | string | undefined): string =>
  Buffer.from(argumentBytes(CudaParameter.u64, Number(address))).toString("hex")
