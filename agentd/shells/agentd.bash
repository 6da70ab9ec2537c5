AGENTD_RUNNING=0 AGENTD_ASKING=0 AGENTD_PROMPT=''
__agentd_count=''

__agentd_precmd() {
    \builtin local code=$?
    if [[ $- == *e* ]]; then code=0; fi
    { \builtin local -; \builtin set +eux; } 2>/dev/null
    \builtin local running asking count
    if [[ ${AGENTD_OWNER-}:${AGENTD_STATE_DIR-} != "$__agentd_whose" ]]; then
        __agentd_whose=${AGENTD_OWNER-}:${AGENTD_STATE_DIR-}
        __agentd_board=$(\command agentd shell --board 2>/dev/null)
        __agentd_count=''
    fi
    if IFS=' ' \builtin read -r running asking count 2>/dev/null <"$__agentd_board/state"; then
        AGENTD_RUNNING=$running AGENTD_ASKING=$asking
        AGENTD_PROMPT=''
        if [[ $running != 0 ]]; then AGENTD_PROMPT="$running&"; fi
        if [[ $asking != 0 ]]; then AGENTD_PROMPT+="${AGENTD_PROMPT:+ }$asking?"; fi
        AGENTD_PROMPT=${AGENTD_PROMPT:+[$AGENTD_PROMPT] }
        if [[ $count != "$__agentd_count" ]]; then
            __agentd_count=$count
            __agentd_tell
        fi
    fi
    \builtin return "$code"
}

__agentd_tell() {
    \builtin local told=0 key seq text
    \builtin read -r told 2>/dev/null <"$__agentd_board/told"
    \builtin printf '%s\n' "$__agentd_count" 2>/dev/null >|"$__agentd_board/told"
    while ((told < __agentd_count)); do
        told=$((told + 1))
        IFS=' ' \builtin read -r key seq text 2>/dev/null <"$__agentd_board/$told" || \builtin continue
        [[ -e $__agentd_board/seen/$key ]] || \builtin printf '%s\n' "$text" >&2
    done
}

# --- completion: what is typed is compared, never expanded -----------------------------------------------------

__agentd_complete() {
    { \builtin local -; \builtin set +eux; } 2>/dev/null
    \builtin local IFS=$' \t\n' cur=${COMP_WORDS[COMP_CWORD]} option='' verb='' kinds='' kind='' word
    \builtin local text
    \builtin local -i i=1 place=0 dashes=0
    COMPREPLY=()
    while ((i < COMP_CWORD)); do
        word=${COMP_WORDS[i]}
        if [[ -n $option ]]; then
            if [[ $word == '=' ]]; then i+=1; continue; fi
            option=''
        elif [[ $word == '--' ]]; then
            kinds='command...' dashes=1
            place=0
        elif [[ $word == -* && $dashes == 0 ]]; then
            __agentd_takes "$word"
        elif [[ -n $word && $place == 0 && -n ${__agentd_verbs[${verb:+$verb }$word]+x} ]]; then
            verb=${verb:+$verb }$word
            kinds=${__agentd_arguments[$verb]}
            place=0
        else
            place+=1
            if [[ $kinds == command... ]]; then __agentd_commands "$i"; \builtin return 0; fi
        fi
        i+=1
    done
    if [[ $cur == '=' && -n $option ]]; then cur=''; fi
    if [[ -n $option ]]; then
        __agentd_values "$option"
    elif [[ $cur == -* && $dashes == 0 ]]; then
        while IFS=$'\t' \builtin read -r word kind text; do
            __agentd_offer "$word" "$text"
        done <<<"${__agentd_options[${verb:-agentd}]-}"
    elif [[ -n $kinds ]]; then
        __agentd_argument
    elif ((place == 0)); then
        for word in "${!__agentd_verbs[@]}"; do
            if [[ -z $verb && $word == *' '* || -n $verb && $word != "$verb "* ]]; then continue; fi
            __agentd_offer "${word#"$verb "}" "${__agentd_verbs[$word]}"
        done
    fi
    __agentd_show
}

# What the value of option $1 is, in $option; empty if it has none.
__agentd_takes() {
    \builtin local name takes text
    while IFS=$'\t' \builtin read -r name takes text; do
        if [[ $name == "$1" && $takes != - ]]; then option=$takes; fi
    done <<<"${__agentd_options[${verb:-agentd}]-}"
}

__agentd_argument() {
    \builtin local -a of
    of=($kinds)
    \builtin local -i n=$place
    if ((n >= ${#of[@]})); then n=${#of[@]}-1; [[ ${of[n]} == *... ]] || \builtin return 0; fi
    if [[ ${of[n]} == command* ]]; then __agentd_commands "$COMP_CWORD"; else __agentd_values "${of[n]%...}"; fi
}

__agentd_commands() {
    if (($1 == COMP_CWORD)) && [[ $cur != */* ]]; then
        while \builtin read -r word; do __agentd_offer "$word" ''; done < <(\builtin compgen -c -- "$cur")
    else
        \builtin compopt -o default -o filenames
    fi
}

__agentd_values() {
    \builtin local word text
    case $1 in
        text) ;;
        file) \builtin compopt -o default -o filenames ;;
        folder) \builtin compopt -o dirnames -o filenames ;;
        branch)
            while \builtin read -r word; do __agentd_offer "$word" ''; done < <(
                \command git for-each-ref --format='%(refname:short)' refs/heads refs/tags refs/remotes 2>/dev/null
            ) ;;
        =*) for word in ${1//[=,]/ }; do __agentd_offer "$word" ''; done ;;
        *)
            while IFS=$'\t' \builtin read -r word text; do __agentd_offer "$word" "$text"; done < <(
                \command agentd complete "$1" "$cur" 2>/dev/null
            ) ;;
    esac
}

__agentd_offer() {
    if [[ $1 == "$cur"* ]]; then
        \builtin local quoted
        \builtin printf -v quoted %q "$1"
        COMPREPLY+=("$quoted")
        __agentd_texts+=("$2")
    fi
}

# What a word is stands beside it where readline lists, and only there: it must never be typed for you.
__agentd_show() {
    \builtin local -i i
    if [[ ${COMP_TYPE-} == @(33|63|64) ]] && ((${#COMPREPLY[@]} > 1)); then
        for i in "${!COMPREPLY[@]}"; do
            if [[ -n ${__agentd_texts[i]-} ]]; then COMPREPLY[i]+="  (${__agentd_texts[i]})"; fi
        done
    fi
    __agentd_texts=()
}
__agentd_texts=()

__agentd_off() {
    \builtin local one
    \builtin local -a others
    others=()
    for one in "${PROMPT_COMMAND[@]}"; do
        one=${one/#__agentd_precmd$'\n'/}
        if [[ $one != __agentd_precmd ]]; then others+=("$one"); fi
    done
    if ((${#others[@]} == 0)); then
        \builtin unset PROMPT_COMMAND
    elif [[ $(\builtin declare -p PROMPT_COMMAND) == 'declare -a'* ]]; then
        PROMPT_COMMAND=("${others[@]}")
    else
        PROMPT_COMMAND=${others[0]}
    fi
    \builtin complete -r agentd 2>/dev/null
    \builtin unset -v AGENTD_RUNNING AGENTD_ASKING AGENTD_PROMPT
    \builtin unset -v __agentd_board __agentd_whose __agentd_count __agentd_texts
    \builtin unset -v __agentd_verbs __agentd_options __agentd_arguments
    \builtin unset -f __agentd_precmd __agentd_tell __agentd_complete __agentd_takes __agentd_argument __agentd_commands
    \builtin unset -f __agentd_values __agentd_offer __agentd_show __agentd_off
}

if [[ ${PROMPT_COMMAND[*]-} != *__agentd_precmd* ]]; then
    if [[ $(\builtin declare -p PROMPT_COMMAND 2>/dev/null) == 'declare -a'* ]]; then
        PROMPT_COMMAND=(__agentd_precmd "${PROMPT_COMMAND[@]}")
    else
        PROMPT_COMMAND=__agentd_precmd${PROMPT_COMMAND:+$'\n'$PROMPT_COMMAND}
    fi
fi
\builtin complete -F __agentd_complete agentd
