/**
 * Graphs of equal kernels in a row, made and launched with raw koffi calls.
 */
import koffi from "koffi"
import { check } from "./driver.ts"
import type { Driver } from "./driver.ts"

export interface RawGraph {
  readonly exec: number
  readonly nodes: BigUint64Array
  readonly launch: () => void
  /** Changes the words of the arguments, in one kernel after the other. */
  readonly rebind: (words: ReadonlyArray<bigint>) => void
}

/** What graphs are made of. */
export interface RawKernels {
  readonly stream: number
  readonly kernel: "none" | "three"
  readonly count: number
  /** The arguments, one word each. */
  readonly words: ReadonlyArray<bigint>
}

export const makeRawGraph = (driver: Driver, { count, kernel, stream, words }: RawKernels): RawGraph => {
  const { calls, inContext, make } = driver
  const block = makeBlock(driver.getFunction(kernel), words)
  return inContext(() => {
    const graph = make("cuGraphCreate", 0)
    const nodes: Array<number> = []
    for (let index = 0; index < count; index++) {
      const before = BigUint64Array.from(nodes.slice(-1), BigInt)
      nodes.push(make("cuGraphAddKernelNode_v2", graph, before, before.length, block.address))
    }
    const exec = make("cuGraphInstantiateWithParams", graph, new BigUint64Array(4))
    return {
      exec,
      nodes: BigUint64Array.from(nodes, BigInt),
      launch: () => check("cuGraphLaunch", calls.cuGraphLaunch(exec, stream)),
      rebind: (changed) => {
        block.write(changed)
        for (const node of nodes) {
          const status = calls.cuGraphExecKernelNodeSetParams_v2(exec, node, block.address)
          check("cuGraphExecKernelNodeSetParams", status)
        }
      }
    }
  })
}

/** Words of `CUDA_KERNEL_NODE_PARAMS_v2`, with a grid and a block of one thread. */
const headOf = (kernel: number, table: number): ReadonlyArray<bigint> => {
  const one = 1n
  const both = 1n << 32n | one
  return [BigInt(kernel), both, both, both, 0n, BigInt(table), 0n, 0n, 0n]
}

const headWords = 9

/** The parameters of a node, followed by the arguments and the table of their addresses. */
export const makeBlock = (kernel: number, words: ReadonlyArray<bigint>) => {
  const block = new BigUint64Array(headWords + 2 * words.length)
  const address = Number(koffi.address(block.buffer))
  const tableAt = headWords + words.length
  block.set(headOf(kernel, words.length === 0 ? 0 : address + 8 * tableAt))
  block.set(words, headWords)
  block.set(words.map((_, index) => BigInt(address + 8 * (headWords + index))), tableAt)
  return { address, write: (changed: ReadonlyArray<bigint>) => block.set(changed, headWords) }
}
