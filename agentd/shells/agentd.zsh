typeset -g AGENTD_RUNNING=0 AGENTD_ASKING=0 AGENTD_PROMPT='' __agentd_count=''

__agentd_precmd() {
    builtin emulate -L zsh +o errexit +o errreturn +o xtrace
    local running asking count
    if [[ "${AGENTD_OWNER-}:${AGENTD_STATE_DIR-}" != "$__agentd_whose" ]]; then
        __agentd_whose="${AGENTD_OWNER-}:${AGENTD_STATE_DIR-}"
        __agentd_board=$(command agentd shell --board 2>/dev/null)
        __agentd_count=''
    fi
    if (( $+functions[compdef] )) && [[ -z ${_comps[agentd]-} ]]; then compdef __agentd_complete agentd; fi
    if IFS=' ' builtin read -r running asking count 2>/dev/null <"$__agentd_board/state"; then
        AGENTD_RUNNING=$running AGENTD_ASKING=$asking
        AGENTD_PROMPT=''
        if [[ $running != 0 ]]; then AGENTD_PROMPT="$running&"; fi
        if [[ $asking != 0 ]]; then AGENTD_PROMPT+="${AGENTD_PROMPT:+ }$asking?"; fi
        AGENTD_PROMPT=${AGENTD_PROMPT:+"[$AGENTD_PROMPT] "}
        if [[ $count != "$__agentd_count" ]]; then
            __agentd_count=$count
            __agentd_tell
        fi
    fi
    return 0
}

__agentd_tell() {
    local told=0 key seq text
    builtin read -r told 2>/dev/null <"$__agentd_board/told"
    builtin print -r -- "$__agentd_count" 2>/dev/null >|"$__agentd_board/told"
    while (( told < __agentd_count )); do
        (( told += 1 ))
        IFS=' ' builtin read -r key seq text 2>/dev/null <"$__agentd_board/$told" || continue
        [[ -e $__agentd_board/seen/$key ]] || builtin print -r -- "$text" >&2
    done
}

__agentd_complete() {
    builtin emulate -L zsh +o errexit +o xtrace -o extendedglob
    local option='' verb='' kinds='' word line
    local -i i=2 place=0 dashes=0 first
    local -a found texts of
    while (( i < CURRENT )); do
        word=${(Q)words[i]}
        if [[ -n $option ]]; then
            option=''
        elif [[ $word == '--' ]]; then
            kinds='command...' place=0 dashes=1
        elif [[ $word == -* && $dashes == 0 ]]; then
            __agentd_takes $word
        elif [[ -n $word && $place == 0 && -n ${__agentd_verbs[${verb:+$verb }$word]+x} ]]; then
            verb=${verb:+$verb }$word
            kinds=${__agentd_arguments[$verb]}
        else
            (( place += 1 ))
            if [[ $kinds == command... ]]; then
                first=$i
                break
            fi
        fi
        (( i += 1 ))
    done
    if (( first )); then
        shift $(( first - 1 )) words
        (( CURRENT -= first - 1 ))
        _normal
        return
    fi
    if [[ -z $option && $PREFIX == --*=* ]]; then
        __agentd_takes ${PREFIX%%=*}
        compset -P 1 '*='
    fi
    if [[ -n $option ]]; then
        __agentd_values $option
    elif [[ $PREFIX == -* && $dashes == 0 ]]; then
        for line in ${(f)__agentd_options[${verb:-agentd}]-}; do
            found+=("${line%%$'\t'*}") texts+=("${line##*$'\t'}")
        done
        __agentd_show
    elif [[ -n $kinds ]]; then
        of=(${=kinds})
        if (( place >= $#of )); then
            if [[ $of[-1] != *... ]]; then return 1; fi
            place=$(( $#of - 1 ))
        fi
        __agentd_values ${of[place + 1]%...}
    elif (( place == 0 )); then
        for word in ${(ok)__agentd_verbs}; do
            if [[ -z $verb && $word == *' '* || -n $verb && $word != "$verb "* ]]; then continue; fi
            found+=("${word#$verb }") texts+=("$__agentd_verbs[$word]")
        done
        __agentd_show
    fi
}

# What the value of option $1 is, in $option; empty if it has none.
__agentd_takes() {
    local line
    local -a parts
    for line in ${(f)__agentd_options[${verb:-agentd}]-}; do
        parts=(${(ps:\t:)line})
        if [[ $parts[1] == "$1" && $parts[2] != - ]]; then option=$parts[2]; fi
    done
}

__agentd_values() {
    local line
    local -a found texts
    case $1 in
        text) return 1 ;;
        command) _command_names -e ;;
        file) _files ;;
        folder) _files -/ ;;
        branch)
            found=(${(f)"$(command git for-each-ref --format='%(refname:short)' refs/heads refs/tags refs/remotes 2>/dev/null)"})
            texts=($found)
            __agentd_show ;;
        '='*)
            found=(${(s:,:)1#=})
            texts=($found)
            __agentd_show ;;
        *)
            for line in ${(f)"$(command agentd complete $1 ${(Q)PREFIX} 2>/dev/null)"}; do
                found+=("${line%%$'\t'*}") texts+=("${line#*$'\t'}")
            done
            __agentd_show ;;
    esac
}

__agentd_show() {
    local -a shown
    local -i i
    (( $#found )) || return 1
    for (( i = 1; i <= $#found; i++ )); do
        shown+=("$found[i]${texts[i]:+  -- $texts[i]}")
        if [[ $texts[i] == $found[i] ]]; then shown[i]=$found[i]; fi
    done
    compadd -l -V agentd -d shown -a -- found
}

__agentd_off() {
    builtin emulate -L zsh
    precmd_functions=(${precmd_functions:#__agentd_precmd})
    if (( $+functions[compdef] )); then compdef -d agentd; fi
    unset AGENTD_RUNNING AGENTD_ASKING AGENTD_PROMPT
    unset __agentd_board __agentd_whose __agentd_count __agentd_verbs __agentd_options __agentd_arguments
    unfunction __agentd_precmd __agentd_tell __agentd_complete __agentd_takes __agentd_values __agentd_show __agentd_off
}

typeset -ga precmd_functions
if (( ! ${precmd_functions[(I)__agentd_precmd]} )); then precmd_functions+=(__agentd_precmd); fi
